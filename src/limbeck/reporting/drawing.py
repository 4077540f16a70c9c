"""Boxes, masks, class names and scores drawn on a picture."""

import colorsys
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from limbeck.contact_sheet import cut, fit
from limbeck.data.detection.masks import decode_rle
from limbeck.tasks.detection_scores import Detections

Style = Literal["prediction", "truth"]
"""Full lines and filled tags for what a model says; dashed lines and white tags for what is annotated."""

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]

# Far apart, and each distinct from grass, sky and asphalt; further classes take hues a golden angle apart.
FIRST_COLOURS: tuple[Colour, ...] = (
    (230, 57, 70), (29, 120, 216), (255, 183, 3), (131, 56, 236), (6, 174, 125), (255, 112, 32), (0, 187, 212),
    (233, 30, 160), (139, 195, 34), (121, 85, 72),
)  # fmt: skip
GOLDEN = 0.618034
MASK_OPACITY = 0.42
WIDEST_TAG = 0.62  # of the picture
SMALLEST = 480  # pixels of the longer side that a picture has to have to be drawn on as it is


def class_colour(label: int) -> Colour:
    """The colour in which objects of a class are drawn on every picture."""
    if label < len(FIRST_COLOURS):
        return FIRST_COLOURS[label]
    place = label - len(FIRST_COLOURS)
    red, green, blue = colorsys.hsv_to_rgb(
        (0.07 + GOLDEN * place) % 1, (0.85, 0.6)[place % 2], (0.95, 0.75)[place % 3 % 2]
    )
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_objects(
    image: Image.Image,
    boxes: NDArray[Any],
    labels: NDArray[Any],
    class_names: Sequence[str],
    *,
    scores: NDArray[Any] | None = None,
    masks: NDArray[np.bool_] | None = None,
    captions: Sequence[str] | None = None,
    style: Style = "prediction",
    side: int = 480,
) -> Image.Image:
    """The picture with its objects, fitted into a square; the surest objects lie on top and get their tags first.

    A tag stands at a corner of its box, above, inside or below, where it hides no other tag and least of the other
    boxes; where no corner is free it is left out, and only the box's colour tells the class.

    Args:
        image: any size; small ones are enlarged by a whole factor before anything is drawn, so that lines and letters
            stay sharp.
        boxes: (N, 4), x1, y1, x2, y2 in the image's pixels.
        labels: (N,).
        class_names: in label order.
        scores: (N,), written behind the names; None for annotations.
        masks: (N, H, W) bool at the image's size, drawn translucently with an outline.
        captions: N texts for the tags instead of name and score; no tag for an empty one.
        style: how to draw.
        side: of the square, in pixels.

    Returns:
        A new RGB image.
    """
    picture = fit(image, side)
    scale = np.array([picture.width / image.width, picture.height / image.height] * 2)
    placed = np.asarray(boxes, dtype=np.float64).reshape(-1, 4) * scale
    order = np.argsort(-(np.asarray(scores, dtype=np.float64) if scores is not None else _areas(placed)), kind="stable")
    if scores is None:
        order = order[::-1]  # small annotated objects before large ones
    if masks is not None and len(masks):
        picture = _with_masks(picture, masks, labels, order)
    draw = ImageDraw.Draw(picture)
    longest = max(picture.size)
    width = max(2, round(longest / 220))
    for row in order[::-1]:
        _outline(draw, placed[row], class_colour(int(labels[row])), width, style)
    texts = captions if captions is not None else _captions(labels, class_names, scores)
    font = ImageFont.load_default(size=max(11.0, 6 + longest / 48))
    taken: list[Rectangle] = []
    for row in (row for row in order if texts[row]):
        others = np.delete(placed, row, axis=0)
        _tag(draw, placed[row], others, texts[row], class_colour(int(labels[row])), font, style, taken)
    return picture


def draw_detections(
    image: Image.Image, found: Detections, class_names: Sequence[str], *, min_score: float, side: int | None = None
) -> Image.Image:
    """The picture with the detections of at least a score.

    Args:
        image: any size.
        found: in its pixels; masks are drawn where there are any.
        class_names: in label order.
        min_score: the least score.
        side: of the square that the picture is fitted into; None for its own size, small ones enlarged.

    Returns:
        A new RGB image.
    """
    rows = np.flatnonzero(np.asarray(found.scores) >= min_score)
    masks = None
    if found.masks is not None and len(rows):
        masks = np.stack([detection_mask(found, int(row), image.height, image.width) for row in rows])
    return draw_objects(
        image, np.asarray(found.boxes)[rows], np.asarray(found.labels)[rows], class_names,
        scores=np.asarray(found.scores)[rows], masks=masks, side=max(SMALLEST, *image.size) if side is None else side,
    )  # fmt: skip


def detection_mask(found: Detections, row: int, height: int, width: int) -> NDArray[np.bool_]:
    """One detection's mask (height, width), decoded now."""
    assert found.masks is not None
    mask = found.masks[row]
    return decode_rle(mask, height, width) if isinstance(mask, dict) else np.asarray(mask).astype(bool)


def _captions(labels: NDArray[Any], class_names: Sequence[str], scores: NDArray[Any] | None) -> list[str]:
    names = [class_names[int(label)] for label in labels]
    if scores is None:
        return names
    return [f"{name} {float(score):.2f}" for name, score in zip(names, scores, strict=True)]


def _areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    areas: NDArray[np.float64] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas


def _with_masks(
    picture: Image.Image, masks: NDArray[np.bool_], labels: NDArray[Any], order: NDArray[np.intp]
) -> Image.Image:
    pixels = np.asarray(picture, dtype=np.float32).copy()
    for row in order[::-1]:
        enlarged = Image.fromarray(masks[row].astype(np.uint8) * 255).resize(picture.size, Image.Resampling.BILINEAR)
        inside = np.asarray(enlarged) >= 128
        colour = np.array(class_colour(int(labels[row])), dtype=np.float32)
        pixels[inside] += MASK_OPACITY * (colour - pixels[inside])
        pixels[inside & ~_without_rim(inside)] = colour
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _without_rim(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask less its outermost pixels; at the picture's border it is taken to go on."""
    padded = np.pad(inside, 1, mode="edge")
    inner: NDArray[np.bool_] = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inner


def _outline(draw: ImageDraw.ImageDraw, box: NDArray[np.float64], colour: Colour, width: int, style: Style) -> None:
    x1, y1, x2, y2 = _inside(box, draw.im.size)
    # A thin rim keeps the line apart from a background of its own colour.
    if style == "prediction":
        draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=(255, 255, 255), width=1)
        draw.rectangle((x1, y1, x2, y2), outline=colour, width=width)
        return
    draw.rectangle((x1, y1, x2, y2), outline=(255, 255, 255), width=width)
    dash = 4 * width
    for start in range(x1, x2 + 1, 2 * dash):
        end = min(start + dash, x2)
        draw.rectangle((start, y1, end, y1 + width - 1), fill=colour)
        draw.rectangle((start, y2 - width + 1, end, y2), fill=colour)
    for start in range(y1, y2 + 1, 2 * dash):
        end = min(start + dash, y2)
        draw.rectangle((x1, start, x1 + width - 1, end), fill=colour)
        draw.rectangle((x2 - width + 1, start, x2, end), fill=colour)


def _inside(box: NDArray[np.float64], size: tuple[int, int]) -> Rectangle:
    """First and last column and row of a box within a picture, at least three pixels each way where there is room."""
    (width, height), (x1, y1, x2, y2) = size, (round(float(value)) for value in box)
    left, upper = min(max(x1, 0), max(width - 3, 0)), min(max(y1, 0), max(height - 3, 0))
    return left, upper, max(left + 2, min(x2, width) - 1), max(upper + 2, min(y2, height) - 1)


def _tag(
    draw: ImageDraw.ImageDraw,
    box: NDArray[np.float64],
    others: NDArray[np.float64],
    text: str,
    colour: Colour,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    style: Style,
    taken: list[Rectangle],
) -> None:
    picture_width, picture_height = draw.im.size
    text = cut(text, font, int(WIDEST_TAG * picture_width))
    top, bottom = font.getbbox("Ågjp|")[1::2]
    width, height = int(font.getlength(text)) + 6, int(bottom - top) + 3
    x1, y1, x2, y2 = _inside(box, draw.im.size)
    corners = (
        (x1, y1 - height), (x2 - width + 1, y1 - height), (x1, y1), (x2 - width + 1, y1), (x1, y2 + 1),
        (x2 - width + 1, y2 + 1), (x1, y2 - height + 1), (x2 - width + 1, y2 - height + 1),
    )  # fmt: skip
    free: list[Rectangle] = []
    for x, y in corners:
        left = min(max(x, 0), max(picture_width - width, 0))
        place = (left, y, left + width - 1, y + height - 1)
        if 0 <= y <= picture_height - height and not any(_meet(place, other) for other in taken):
            free.append(place)
    if not free:
        return
    place = min(free, key=lambda place: _hidden(place, others))
    taken.append(place)
    if style == "prediction":
        draw.rectangle(place, fill=colour)
        ink: Colour = (0, 0, 0) if _is_light(colour) else (255, 255, 255)
    else:
        draw.rectangle(place, fill=(255, 255, 255), outline=colour)
        ink = (20, 20, 20)
    draw.text((place[0] + 3, place[1] + 1 - top), text, fill=ink, font=font)


def _hidden(place: Rectangle, boxes: NDArray[np.float64]) -> float:
    """How many boxes, in parts of a box, lie below a tag; rounded, so that a sliver decides nothing."""
    low, high = np.maximum(boxes[:, :2], place[:2]), np.minimum(boxes[:, 2:], place[2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    return round(float((shared / np.maximum(_areas(boxes), 1)).sum()), 1)


def _meet(one: Rectangle, other: Rectangle) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _is_light(colour: Colour) -> bool:
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue > 150
