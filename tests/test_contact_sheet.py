import numpy as np
import pytest
from PIL import Image, ImageFont

from limbeck.contact_sheet import BORDER, MARGIN, SheetItem, contact_sheet, cut, drawable, fit


def items(count, lines=1):
    return [SheetItem(Image.new("RGB", (20, 20), "#336699"), f"item {i}", ["a line"] * lines) for i in range(count)]


def test_the_width_holds_the_columns_and_the_height_grows_by_rows():
    cell = 64 + 2 * BORDER
    assert contact_sheet(items(4), columns=2, thumb=64).width == MARGIN + 2 * (cell + MARGIN)
    heights = [contact_sheet(items(n), columns=2, thumb=64).height for n in (2, 3, 4, 5)]
    assert heights[1] == heights[2]
    assert heights[1] - heights[0] == heights[3] - heights[2] > cell


def test_more_columns_than_pictures_leave_no_empty_paper():
    assert contact_sheet(items(2), columns=10, thumb=40).size == contact_sheet(items(2), columns=2, thumb=40).size


def test_auto_columns_make_a_sheet_about_as_wide_as_high():
    sheet = contact_sheet(items(36, lines=2), thumb=80)
    assert 0.7 < sheet.width / sheet.height < 1.5


def test_small_pictures_are_enlarged_pixel_by_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    enlarged = np.asarray(fit(Image.fromarray(pixels), 160))
    assert np.array_equal(enlarged, pixels.repeat(20, 0).repeat(20, 1))
    sheet = np.asarray(contact_sheet([SheetItem(Image.fromarray(pixels), "")], thumb=160))
    assert np.array_equal(sheet[MARGIN + BORDER :, MARGIN + BORDER :][:160, :160], enlarged)


def test_large_pictures_are_reduced_with_their_proportions():
    assert fit(Image.new("L", (400, 100)), 160).size == (160, 40)
    assert fit(Image.new("RGB", (10, 2000)), 160).size == (1, 160)


def test_transparent_places_show_the_paper():
    assert fit(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), 4).getpixel((0, 0)) == (255, 255, 255)


def test_a_border_frames_only_its_own_picture():
    framed = SheetItem(Image.new("RGB", (8, 8)), "wrong", border="#ff0000")
    sheet = contact_sheet([framed, SheetItem(Image.new("RGB", (8, 8)), "right")], columns=2, thumb=40)
    assert sheet.getpixel((MARGIN, MARGIN)) == (255, 0, 0)
    assert sheet.getpixel((MARGIN + 40 + 2 * BORDER + MARGIN, MARGIN)) == (255, 255, 255)


def test_text_stands_below_the_picture_and_stays_in_its_cell():
    long = SheetItem(Image.new("RGB", (8, 8), "white"), "a very long title " * 9, ["and\nline breaks " * 9])
    with_text = np.asarray(contact_sheet([long], thumb=80))
    ink = np.argwhere((with_text < 128).all(-1))
    assert len(ink) > 50
    assert ink[:, 0].min() >= MARGIN + 80 + 2 * BORDER
    assert ink[:, 1].max() < MARGIN + 80 + 2 * BORDER


def test_cut_text_fits_and_short_text_is_kept():
    font = ImageFont.load_default(size=12)
    assert cut("cat", font, 100) == "cat"
    shortened = cut("a name that does not fit", font, 60)
    assert shortened.endswith("…")
    assert font.getlength(shortened) <= 60


def test_nothing_to_show_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])


def test_letters_that_the_font_lacks_are_drawn_by_their_parts_and_never_as_empty_boxes():
    font = ImageFont.load_default(size=12)
    assert drawable("äpfel No 3, 93 %", font) == "apfel No 3, 93 %"
    assert drawable("a\u0308 🍎\ufe0f", font) == "a ?"
    box = bytes(font.getmask("\uffff"))
    assert all(bytes(font.getmask(letter)) != box for letter in drawable("Ж中ßéø…🍎", font) if letter != "?")
