"""The tiny detectors of the detection tests serve here too."""

import sys
from pathlib import Path

# The tests are no packages, so what several of them share is found as a module beside them.
sys.path.insert(0, str(Path(__file__).parents[2] / "detection"))
