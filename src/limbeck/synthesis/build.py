"""From what the user asked for to objects that make images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limbeck.call_checks import checked_options, import_class
from limbeck.errors import UserError
from limbeck.models.attention import attention_blocks
from limbeck.models.base import VisionModel
from limbeck.synthesis.base import Synthesis
from limbeck.synthesis.names import RESERVED_OPTIONS, SynthesisSpec

STATISTICS_FILE = "statistics.safetensors"
"""Where `limbeck statistics` leaves a run's token moments, and where they are looked for."""


def build_synthesis(spec: SynthesisSpec, setting: Any) -> Any:
    """Make one way of making images.

    Args:
        spec: what the user asked for.
        setting: a `Setting`, or for detection a `DetectionSetting`.

    Returns:
        A `Synthesis`, or for detection a `SceneSynthesis`.

    Raises:
        UserError: the class cannot be found or is no `Synthesis`, an option is unknown or of the wrong type, or the way
            refuses this teacher.
    """
    found = import_synthesis(spec)
    options = checked_options(spec.name, found, spec.options, skip=1, reserved=RESERVED_OPTIONS, kind="way")
    return found(setting, **options)


def import_synthesis(spec: SynthesisSpec) -> type[Any]:
    """The class that a spec names; a subclass of `Synthesis`, or for detection one with the same interface.

    Raises:
        UserError: it cannot be found, or is no such class.
    """
    if spec.task == "detection":
        from limbeck.synthesis.detection.base import SceneSynthesis

        base: type[Any] = SceneSynthesis
    else:
        base = Synthesis
    return import_class(
        spec.path, base, kind="synthesis", noun="way to make images", public=f"{base.__module__}.{base.__name__}"
    )


def choose_synthesis(teacher: VisionModel) -> str:
    """The way that "auto" stands for: a quick generator where BatchNorm tells of the data, inversion otherwise."""
    has_batchnorm = any(hasattr(part, "running_mean") and part.running_mean is not None for part in teacher.modules())
    return "fast" if has_batchnorm and not attention_blocks(teacher) else "invert"


def shares_of(count: int, specs: Sequence[SynthesisSpec]) -> list[int]:
    """How many of `count` pictures each way makes; the rounding's rest goes to those that lost most by it.

    Raises:
        UserError: a way's share comes to no picture at all.
    """
    whole = sum(spec.share for spec in specs)
    exact = [count * spec.share / whole for spec in specs]
    counts = [int(part) for part in exact]
    by_loss = sorted(range(len(specs)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_loss[: count - sum(counts)]:
        counts[i] += 1
    for spec, own in zip(specs, counts, strict=True):
        if own == 0:
            raise UserError(
                f"Of {count} pictures the share of {spec.name} ({spec.share} of {whole}) comes to none. Ask for more "
                "pictures, or leave it out."
            )
    return counts


def statistics_file(teacher: str, asked: str) -> str | None:
    """The file of the teacher's token moments.

    Args:
        teacher: the name it was opened by.
        asked: a file; "auto" is the one in the teacher's run folder, if there is one; "none" is none.

    Raises:
        FileNotFoundError: the file asked for does not exist.
    """
    if asked == "none":
        return None
    if asked != "auto":
        if not Path(asked).is_file():
            raise FileNotFoundError(f"The statistics file {asked} does not exist. `limbeck statistics` writes one.")
        return asked
    own = Path(teacher) / STATISTICS_FILE
    return str(own) if own.is_file() else None
