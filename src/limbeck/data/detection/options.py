"""What a training view of a scene is: how a picture is mirrored, scaled, cropped and recoloured. Imports nothing heavy."""

from dataclasses import dataclass

from limbeck.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SceneViewOptions:
    """The options of training views; those for measuring have none. The defaults are those of COCO's 1x schedules.

    Attributes:
        flip: chance of a horizontal flip.
        scale_jitter: smallest and largest factor by which what is shown is made larger than the detector asks for, drawn
            uniformly. Above 1 a random part fills the picture, under 1 the image lies somewhere in a black one: large
            scale jitter (Ghiasi et al., arXiv:2012.07177) is (0.1, 2).
        short_sides: the shorter side is one of these instead of the detector's own, multi-scale training; the
            longer one stays within the detector's limit.
        color_jitter: largest relative change of brightness, contrast and saturation.
        min_visible: an object of which the crop leaves a smaller share than this, by its mask where there is one, else
            by its box, is left out.

    Raises:
        UserError: a value is out of its range.
    """

    flip: float = 0.5
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    short_sides: tuple[int, ...] = ()
    color_jitter: float = 0.0
    min_visible: float = 0.1

    def __post_init__(self) -> None:
        low, high = self.scale_jitter
        rules = {
            "flip": (0 <= self.flip <= 1, "between 0 and 1"),
            "scale_jitter": (0 < low <= high, "two factors, 0 < smallest <= largest"),
            "short_sides": (all(side >= 1 for side in self.short_sides), "pixels, each at least 1"),
            "color_jitter": (self.color_jitter >= 0, "at least 0"),
            "min_visible": (0 <= self.min_visible <= 1, "between 0 and 1"),
        }
        for name, (holds, expectation) in rules.items():
            if not holds:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be {expectation}.")
