"""Many annotated pictures on one sheet."""

import bisect
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

PAPER = "#ffffff"
INK = "#1b1f24"
QUIET = "#57606a"
MARGIN = 12
BORDER = 4
LARGEST_LETTERS = 16


@dataclass(frozen=True)
class SheetItem:
    """One picture and what is said about it.

    Attributes:
        image: any mode and size.
        title: the line above the picture's other lines, in strong ink.
        lines: lines below the title; each is cut to the picture's width.
        border: colour of a frame around the picture, in any form that PIL knows; None for no frame.
    """

    image: Image.Image
    title: str
    lines: list[str] = field(default_factory=list)
    border: str | None = None


def contact_sheet(items: Sequence[SheetItem], columns: int | Literal["auto"] = "auto", thumb: int = 160) -> Image.Image:
    """Lay out pictures in a grid, each with its title and lines below it.

    Args:
        items: the pictures, row by row.
        columns: pictures in a row; auto makes a sheet about as wide as it is high, of at most 8 columns.
        thumb: side in pixels of the square that each picture is fitted into. Larger pictures are reduced smoothly;
            smaller ones are enlarged by a whole factor without smoothing, so that their pixels stay visible.

    Returns:
        The sheet, RGB.

    Raises:
        ValueError: there are no items, or a size is not positive.
    """
    if not items:
        raise ValueError("a contact sheet needs at least one picture")
    if thumb < 1 or (columns != "auto" and columns < 1):
        raise ValueError(f"columns and thumb must be at least 1, got {columns} and {thumb}")
    font = ImageFont.load_default(size=min(max(9, round(thumb / 12)), LARGEST_LETTERS))
    top, bottom = font.getbbox("Ågjpq|")[1::2]
    line_height = math.ceil((bottom - top) * 1.25)
    text_lines = 1 + max(len(item.lines) for item in items)
    cell_width = thumb + 2 * BORDER
    cell_height = thumb + 2 * BORDER + 4 + text_lines * line_height
    across = _auto_columns(len(items), cell_width, cell_height) if columns == "auto" else columns
    across = min(across, len(items))
    down = math.ceil(len(items) / across)
    sheet = Image.new(
        "RGB",
        (MARGIN + across * (cell_width + MARGIN), MARGIN + down * (cell_height + MARGIN)),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    for number, item in enumerate(items):
        left = MARGIN + (number % across) * (cell_width + MARGIN)
        upper = MARGIN + (number // across) * (cell_height + MARGIN)
        if item.border is not None:
            draw.rectangle(
                (left, upper, left + cell_width - 1, upper + cell_width - 1), outline=item.border, width=BORDER
            )
        picture = fit(item.image, thumb)
        sheet.paste(
            picture,
            (left + BORDER + (thumb - picture.width) // 2, upper + BORDER + (thumb - picture.height) // 2),
        )
        for row, line in enumerate([item.title, *item.lines]):
            draw.text(
                (left, upper + cell_width + 4 + row * line_height - top),
                cut(line, font, cell_width),
                fill=INK if row == 0 else QUIET,
                font=font,
            )
    return sheet


def fit(image: Image.Image, side: int) -> Image.Image:
    """The picture as RGB, as large as fits into a square of `side` pixels without changing its proportions.

    Pictures that are small enough are enlarged by a whole factor with the nearest pixel; others are reduced.
    """
    image = _on_paper(image)
    longest = max(image.size)
    if longest <= side:
        factor = side // longest
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    size = (max(1, round(image.width * side / longest)), max(1, round(image.height * side / longest)))
    return image.resize(size, Image.Resampling.LANCZOS)


def cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """`text` on one line, in letters that the font has, shortened with an ellipsis to at most `width` pixels."""
    text = drawable(" ".join(text.split()), font)
    if font.getlength(text) <= width:
        return text
    letters = (
        bisect.bisect_right(range(len(text)), float(width), key=lambda n: float(font.getlength(text[:n] + "…"))) - 1
    )
    return text[: max(letters, 0)].rstrip() + "…"


def drawable(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """`text` with every character that the font lacks replaced: by the letters it is made of, or by a question mark.

    The font that comes with Pillow has English letters only; it draws all others as the same empty box.
    """
    return "".join(_in_font(character, font) for character in text)


def _in_font(character: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if character.isascii() or _picture(character, font) != _picture("\uffff", font):
        return character
    if unicodedata.category(character) in ("Mn", "Cf"):  # accents of their own, joiners, variants of symbols
        return ""
    parts = unicodedata.normalize("NFKD", character)
    letters = "".join(part for part in parts if part.isascii())
    return letters or "?"


def _picture(character: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> bytes:
    return bytes(font.getmask(character))


def _auto_columns(count: int, width: int, height: int) -> int:
    return max(1, min(8, round(math.sqrt(count * height / width))))


def _on_paper(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    ground = Image.new("RGBA", layered.size, PAPER)
    return Image.alpha_composite(ground, layered).convert("RGB")
