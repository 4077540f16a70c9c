"""One made scene as it is shown on a contact sheet: with its boxes, and what the teacher says of them."""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from limbeck.contact_sheet import SheetItem

_SIDE = 240
_GOLDEN = 0.618034

Colour = tuple[int, int, int]


def sheet_item(folder: Path, scene: dict[str, Any], class_names: Sequence[str]) -> SheetItem:
    """A picture with boxes, class names and the teacher's scores; a box that it does not find again is dashed.

    Args:
        folder: of the images.
        scene: see `limbeck.synthesis.detection.writer.Scene`.
        class_names: in label order.
    """
    with Image.open(folder / scene["image"]["file_name"]) as opened:
        picture = opened.convert("RGB")
    scale = _SIDE / max(picture.size)
    # By the nearest pixel where it is enlarged: what was made should be seen, not a smoothed copy.
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), method)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=11)
    for annotation in sorted(scene["annotations"], key=lambda annotation: -annotation["area"]):
        label, score = annotation["category_id"] - 1, annotation["score"]
        x, y, width, height = (side * scale for side in annotation["bbox"])
        corners = round(x), round(y), round(x + width) - 1, round(y + height) - 1
        _outline(draw, corners, class_colour(label), dashed=score == 0)
        place, text = (round(x) + 3, round(y) + 2), f"{class_names[label]} {score:.2f}"
        left, top, right, bottom = draw.textbbox(place, text, font=font)
        draw.rectangle((left - 2, top - 1, right + 1, bottom + 1), fill=class_colour(label))
        draw.text(place, text, fill="black", font=font)
    again = sum(annotation["score"] > 0 for annotation in scene["annotations"])
    return SheetItem(picture, scene["image"]["file_name"], [f"{again} of {len(scene['annotations'])} found again"])


def class_colour(label: int) -> Colour:
    """Hues a golden angle apart."""
    red, green, blue = colorsys.hsv_to_rgb(_GOLDEN * label % 1, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def _outline(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], colour: Colour, *, dashed: bool) -> None:
    x1, y1, x2, y2 = box
    x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
    if not dashed:
        draw.rectangle((x1, y1, x2, y2), outline=colour, width=2)
        return
    for start in range(x1, x2, 8):
        for y in (y1, y2):
            draw.line((start, y, min(start + 4, x2), y), fill=colour, width=2)
    for start in range(y1, y2, 8):
        for x in (x1, x2):
            draw.line((x, start, x, min(start + 4, y2)), fill=colour, width=2)
