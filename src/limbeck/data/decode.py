"""Any image file to 8-bit RGB, or an error that names the file.

What is decided here:

* Transparent pixels are composed over white.
* 16-bit grey is scaled by 255 / 65535, not clipped. 32-bit integers are read as 16-bit when they fit in it, and
  floats when they lie in [0, 1]; others are refused, since their range is unknown.
* CMYK is converted without colour profiles: R = 255 - min(255, C + K), and so on.
* The EXIF orientation is applied. Of an animation, the first frame counts.
* A truncated file is an error, never a picture with a grey lower half.
* Formats whose decoders start other programs (EPS, WMF) are not read.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from limbeck.data.base import ImageSource
from limbeck.errors import UserError

EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "bmp", "gif", "webp", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm", "avif", "jp2", "j2k", "tga"),
    )
)
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA")

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImageError(UserError):
    """A file that cannot be decoded; the message names it, its size, the cause and the remedy."""

    def __init__(self, message: str) -> None:
        # A DataLoader worker hands an error on as its class and its whole traceback as text; a person needs the
        # last line alone.
        if message.startswith("Caught BadImageError in"):
            message = message.rpartition("BadImageError: ")[2].strip()
        super().__init__(message)


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read an image file as 8-bit RGB, upright.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file cannot be read at all (permissions, a failing disk).
        BadImageError: its content is no whole image.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"The image {path} does not exist (any more), or is a broken link.") from None
    except OSError as error:
        raise UserError(
            f"The image {path} cannot be read: {error.strerror}. Check its permissions and the disk."
        ) from error
    return decode_image(content, str(path))


def decode_image(content: bytes, name: str) -> Image.Image:
    """Decode the bytes of an image file to 8-bit RGB, upright.

    Args:
        content: of the file.
        name: how a person finds the image.

    Raises:
        BadImageError: the bytes are no whole image.
    """
    if not content:
        raise _bad_image(name, 0, "it is empty")
    # Some library may have switched this on for the whole process; half pictures would then pass for whole ones.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with Image.open(BytesIO(content), formats=_readable_formats()) as image:
            image.load()
            return to_rgb(_upright(image))
    except UnidentifiedImageError as error:
        raise _bad_image(name, len(content), "its content is not an image in a known format") from error
    except Image.DecompressionBombError as error:
        raise _bad_image(name, len(content), f"it would unpack to too many pixels ({error})") from error
    except Exception as error:  # decoders raise anything from OSError to struct.error on damaged files
        raise _bad_image(name, len(content), str(error) or type(error).__name__) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB, by the rules at the top of this file.

    Raises:
        ValueError: the range of its values is unknown, or the mode cannot be converted.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _grey(_scale_integers(np.asarray(image).astype(np.int64)))
    if image.mode == "F":
        return _grey(_scale_floats(np.asarray(image)))
    return image.convert("RGB")


def find_bad_images(source: ImageSource) -> dict[int, str]:
    """Decode every image of a source once, in threads, and say which cannot be decoded.

    Returns:
        The index of each bad image with the reason.
    """

    def reason(index: int) -> str | None:
        try:
            source.read(index)
        except (BadImageError, FileNotFoundError) as error:
            return str(error)
        return None

    bad: dict[int, str] = {}
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        # In pieces, since map() queues all of its input at once and a source may have millions of images.
        for start in range(0, len(source), 4096):
            piece = range(start, min(start + 4096, len(source)))
            bad |= {index: why for index, why in zip(piece, pool.map(reason, piece), strict=True) if why is not None}
    return bad


def _bad_image(name: str, size: int, cause: str) -> BadImageError:
    return BadImageError(
        f"The image {name} ({size} bytes) cannot be decoded: {cause.rstrip('.')}. Download or copy it again, or leave "
        "such files out with --bad-images skip."
    )


@cache
def _readable_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged EXIF data says nothing about the pixels
        return image
    transpose = _UPRIGHT.get(orientation)
    if transpose is None:
        return image
    upright = image.transpose(transpose)
    upright.info = image.info
    return upright


def _scale_integers(values: NDArray[np.int64]) -> NDArray[Any]:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(
            f"it holds 32-bit values from {low} to {high}, whose range is unknown; convert it to 8 or 16 bits"
        )
    return (values * 255 + 32767) // 65535


def _scale_floats(values: NDArray[Any]) -> NDArray[Any]:
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 1:
        raise ValueError(f"it holds real numbers from {low:g} to {high:g}, not from 0 to 1; convert it to 8 or 16 bits")
    scaled: NDArray[Any] = np.rint(values * 255)
    return scaled


def _grey(values: NDArray[Any]) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")
