"""Plug-In Inversion: augmentation alone, and nothing that a network would have to give.

Ghiasi, Kazemi, Reich, Zhu, Goldblum, Goldstein, "Plug-In Inversion: Model-Agnostic Inversion for Vision with Data
Augmentations", ICML 2022, arXiv:2201.12961. Pictures grow from their centre: a small canvas is optimised first, then put
into the middle of a larger one. Each step shows every picture several times, under colour shifts of their own.

Inferred: the canvas is shown resized to the teacher's input; rolls in proportion to the canvas.
"""

from collections.abc import Sequence
from typing import Literal

from limbeck.call_checks import require_at_least, require_positive, require_share
from limbeck.synthesis.base import Setting
from limbeck.synthesis.inversion.augment import Augmentation, require_roll, scaled_roll
from limbeck.synthesis.inversion.engine import PixelInversion, Plan
from limbeck.synthesis.inversion.stages import Stage, growing, scaled
from limbeck.synthesis.priors.classes import ClassLoss
from limbeck.synthesis.priors.total_variation import TotalVariation
from limbeck.synthesis.terms import term


class PlugIn(PixelInversion):
    """Plug-In Inversion.

    Args:
        setting: any teacher of at least two classes.
        iterations: of all canvases together; published 400 for each of 7.
        lr: of Adam, in pixel values of [0, 1]; published 0.01. Falls along a cosine in each canvas.
        ensemble: times that each picture is shown at every step, each with its own colours. The time grows with it.
        parts: the canvas grows by 1/parts of the size; published 8.
        first: parts of the first canvas; published 2. With first=8 there is one canvas, the whole picture.
        ce: weight of the class loss.
        tv: weight of the total variation; published 0, which the augmentation makes up for.
        roll: largest roll in pixels; "auto" is the published 32 at 224 pixels, in proportion at others.
        flip: chance that a step shows mirrored pictures.
        color_shift: range of the shift, in pixel values, and of the logarithm of the scale; published 1.
        channel_offset: standard deviation of a decaying offset of whole channels, in pixel values; the authors' later
            visualisations use 0.5.
        classes: those to ask for; None is all.

    Raises:
        UserError: an option is out of range, or the teacher knows one class only, which leaves no loss.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        iterations: int = 2800,
        lr: float = 0.01,
        ensemble: int = 8,
        parts: int = 8,
        first: int = 2,
        ce: float = 1.0,
        tv: float = 0.0,
        roll: int | Literal["auto"] = "auto",
        flip: float = 0.0,
        color_shift: float = 1.0,
        channel_offset: float = 0.0,
        classes: Sequence[int] | None = None,
    ) -> None:
        require_at_least("plugin", 1, iterations=iterations, ensemble=ensemble, first=first)
        require_at_least("plugin", first, parts=parts)
        require_at_least("plugin", 0, ce=ce, tv=tv, color_shift=color_shift, channel_offset=channel_offset)
        require_positive("plugin", lr=lr)
        require_roll("plugin", roll)
        require_share("plugin", flip=flip)
        teacher = setting.teacher
        unit = float(teacher.std.mean())
        stages = [
            Stage(400, lr / unit, rolls=(scaled_roll(32, size) if roll == "auto" else (roll, roll),), canvas=size)
            for size in growing(setting.size, first, parts)
        ]
        plan = Plan(
            terms=(
                *term("ce", ce if setting.num_classes > 1 else 0, lambda: ClassLoss(teacher.facts)),
                *term("tv", tv, TotalVariation),
            ),
            stages=scaled(stages, iterations),
            augmentation=Augmentation(
                flip=flip,
                color_mean=color_shift,
                color_scale=color_shift,
                channel_offset=channel_offset,
                pixel_units=True,
                repeats=ensemble,
            ),
            betas=(0.5, 0.99),
        )
        super().__init__(setting, plan, classes=classes)
