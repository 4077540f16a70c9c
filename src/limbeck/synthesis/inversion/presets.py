"""All ways to invert a teacher, under the names by which `limbeck.synthesis.names` finds them."""

from limbeck.synthesis.inversion.deep_inversion import DeepInversion
from limbeck.synthesis.inversion.invert import Invert
from limbeck.synthesis.inversion.mimiq import MimiQ
from limbeck.synthesis.inversion.plug_in import PlugIn
from limbeck.synthesis.inversion.psaq import PSAQ
from limbeck.synthesis.inversion.sparse_presets import PRI, SMI

__all__ = ["PRI", "PSAQ", "SMI", "DeepInversion", "Invert", "MimiQ", "PlugIn"]
