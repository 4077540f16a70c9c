"""Pixels are what the file says, whatever its mode; a file that is no whole image is named, not guessed at."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from limbeck.data.decode import BadImageError, decode_image, read_image
from limbeck.errors import UserError


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def pixels(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257, 256, 32768, 65278, 65535]], dtype=np.uint16)
    path = save(Image.fromarray(values), tmp_path / f"deep.{suffix}")
    expected = np.rint(values * (255 / 65535)).astype(np.uint8)
    np.testing.assert_array_equal(pixels(path), np.repeat(expected[..., None], 3, axis=2))


def test_32_bit_integers_within_16_bits_are_read_as_16_bits(tmp_path: Path) -> None:
    path = save(Image.fromarray(np.array([[0, 65535]], dtype=np.int32)), tmp_path / "int.tif")
    assert pixels(path)[0, :, 0].tolist() == [0, 255]


def test_values_of_unknown_range_are_refused(tmp_path: Path) -> None:
    wide = save(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)), tmp_path / "wide.tif")
    with pytest.raises(BadImageError, match=r"wide\.tif.*0 to 70000"):
        read_image(wide)
    real = save(Image.fromarray(np.array([[0.0, 255.0]], dtype=np.float32)), tmp_path / "real.tif")
    with pytest.raises(BadImageError, match=r"real\.tif.*from 0 to 255"):
        read_image(real)


def test_reals_in_the_unit_interval_are_scaled(tmp_path: Path) -> None:
    path = save(Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)), tmp_path / "real.tif")
    assert pixels(path)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("ink", "colour"),
    [
        ((255, 0, 0, 0), (0, 255, 255)),
        ((0, 255, 0, 0), (255, 0, 255)),
        ((0, 0, 255, 0), (255, 255, 0)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((0, 0, 0, 0), (255, 255, 255)),
    ],
)
@pytest.mark.parametrize("suffix", ["tif", "jpg"])
def test_cmyk_inks(tmp_path: Path, ink: tuple[int, ...], colour: tuple[int, ...], suffix: str) -> None:
    path = save(Image.new("CMYK", (8, 8), ink), tmp_path / f"ink.{suffix}")
    assert Image.open(path).mode == "CMYK"
    np.testing.assert_allclose(pixels(path)[4, 4].astype(int), colour, atol=2 if suffix == "jpg" else 0)


def test_grey_and_one_bit(tmp_path: Path) -> None:
    assert pixels(save(Image.new("L", (2, 2), 77), tmp_path / "grey.png"))[0, 0].tolist() == [77] * 3
    assert pixels(save(Image.new("1", (2, 2), 1), tmp_path / "bit.png"))[0, 0].tolist() == [255] * 3
    assert pixels(save(Image.new("1", (2, 2), 0), tmp_path / "bit.png"))[0, 0].tolist() == [0] * 3


def test_transparency_is_composed_over_white(tmp_path: Path) -> None:
    assert pixels(save(Image.new("RGBA", (2, 2), (255, 0, 0, 0)), tmp_path / "a.png"))[0, 0].tolist() == [255] * 3
    half = pixels(save(Image.new("RGBA", (2, 2), (255, 0, 0, 51)), tmp_path / "b.png"))[0, 0]
    assert half.tolist() == [255, 204, 204]  # 51 / 255 is a fifth
    assert pixels(save(Image.new("LA", (2, 2), (0, 51)), tmp_path / "c.png"))[0, 0].tolist() == [204] * 3


def test_palettes_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    assert pixels(save(image, tmp_path / "p.png")).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert pixels(save(image, tmp_path / "t.png", transparency=1)).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    rgb = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    keyed = save(rgb, tmp_path / "key.png", transparency=(4, 5, 6))
    assert pixels(keyed).tolist() == [[[1, 2, 3], [255, 255, 255]]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_every_exif_orientation_shows_the_same_upright_picture(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    # How a camera stores the upright picture, from the definition: which corner the first row and column show.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    image = Image.fromarray(np.ascontiguousarray(stored)).convert("RGB")
    path = save(image, tmp_path / f"turned.{suffix}", exif=exif, **options)
    np.testing.assert_array_equal(pixels(path)[..., 0], upright)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tif", "bmp"])
def test_a_truncated_file_is_named_with_its_size_and_the_remedy(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = save(Image.fromarray(noise), tmp_path / f"whole.{suffix}").read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(BadImageError) as error:
        read_image(path)
    assert str(path) in str(error.value)
    assert f"({len(content) // 2} bytes)" in str(error.value)
    assert "--bad-images skip" in str(error.value)


def test_truncation_is_found_although_some_library_tolerates_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(Image.effect_noise((64, 64), 90), tmp_path / "whole.jpg")
    path.write_bytes(path.read_bytes()[:-400])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(BadImageError, match=r"whole\.jpg.*truncated"):
        read_image(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "void.jpg").touch()
    with pytest.raises(BadImageError, match=r"void\.jpg \(0 bytes\).*empty"):
        read_image(tmp_path / "void.jpg")


def test_a_file_that_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    with pytest.raises(BadImageError, match=r"page\.jpg \(16 bytes\).*not an image"):
        read_image(tmp_path / "page.jpg")


def test_formats_that_start_other_programs_are_not_read() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "EPS")
    with pytest.raises(BadImageError, match=r"fake\.png.*not an image"):
        decode_image(buffer.getvalue(), "fake.png")


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(Image.new("1", (64, 64)), tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadImageError, match=r"bomb\.png.*too many pixels.*4096"):
        read_image(path)


def test_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        read_image(tmp_path / "gone.jpg")


def test_what_is_no_fault_of_the_content_is_not_skippable(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(UserError, match=r"folder\.jpg cannot be read") as error:
        read_image(tmp_path / "folder.jpg")
    assert not isinstance(error.value, BadImageError)
