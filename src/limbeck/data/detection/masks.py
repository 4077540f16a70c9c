"""Masks as annotation files store them: polygons, run lengths (COCO's RLE), or plain arrays.

Run lengths count pixels down the columns, first those outside the mask, then those inside, and so on. The compressed
form writes each count, from the fourth on less the count two before it, as a signed number in groups of five bits, the
lowest first: a character is 48 + the group, + 32 where more groups follow, and the highest bit of the last group is
the sign. Polygons are filled by COCO's own rasteriser, in faster-coco-eval, since its rule for the pixels on the border
is no other library's.

Source of the format: T.-Y. Lin and P. Dollar, the COCO API (maskApi.c), 2014.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import MissingExtraError, UserError

Polygons = list[list[float]]
Segment = Polygons | dict[str, Any] | NDArray[np.bool_]
Problem = tuple[str, str]

_MOST_GROUPS = 12  # of five bits in one count, more than any image needs


def mask_problem(segment: Any, height: int, width: int) -> Problem | None:
    """What is wrong with a stored mask, as (reason, detail), or None.

    Args:
        segment: polygons, one flat list of x1, y1, x2, y2, ... in pixels for each part; or {"size": [height, width],
            "counts": numbers or text}.
        height: of the image.
        width: of the image.
    """
    if isinstance(segment, dict):
        return _rle_problem(segment, height, width)
    if not isinstance(segment, list) or not all(isinstance(part, list) for part in segment):
        return "unreadable mask", f"its mask {str(segment)[:60]!r} is neither a list of polygons nor an RLE"
    for part in segment:
        if not all(isinstance(value, int | float) and np.isfinite(value) for value in part):
            return "unreadable mask", f"its polygon {str(part)[:60]} holds values that are no numbers"
        if len(part) % 2:
            return "unreadable mask", f"its polygon has {len(part)} coordinates, an odd number"
        if len(part) < 6:
            return "polygon of fewer than three points", f"its polygon has {len(part) // 2} points; it needs three"
    return None


def decode_segment(segment: Segment, height: int, width: int) -> NDArray[np.bool_]:
    """A stored mask as an array.

    Args:
        segment: without a `mask_problem`.
        height: of the image.
        width: of the image.

    Returns:
        (height, width) bool.

    Raises:
        UserError: it has another size.
        MissingExtraError: polygons need `faster_coco_eval`, which is not installed.
    """
    if isinstance(segment, dict):
        return decode_rle(segment, height, width)
    if isinstance(segment, np.ndarray):
        if segment.shape != (height, width):
            raise UserError(f"A mask has {segment.shape} pixels, its image {(height, width)}; they must be the same.")
        return segment
    try:
        from faster_coco_eval.core import mask as coco_masks
    except ImportError as missing:
        raise MissingExtraError("faster_coco_eval", "detection", "Filling the polygons of masks") from missing
    parts = coco_masks.frPyObjects(segment, height, width)
    filled: NDArray[np.bool_] = coco_masks.decode(coco_masks.merge(parts)).astype(bool)
    return filled


def segment_area(segment: Segment) -> float:
    """Pixels of a mask; of polygons, the exact area by the shoelace formula, summed over the parts."""
    if isinstance(segment, dict):
        return float(_counts(segment["counts"])[1::2].sum())
    if isinstance(segment, np.ndarray):
        return float(segment.sum())
    total = 0.0
    for part in segment:
        x, y = np.array(part, dtype=np.float64).reshape(-1, 2).T
        total += 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))
    return total


def segment_box(segment: Segment) -> tuple[float, float, float, float]:
    """The smallest x1, y1, x2, y2 around a mask; zeros around an empty one."""
    if isinstance(segment, list):
        points = np.concatenate([np.array(part, dtype=np.float64).reshape(-1, 2) for part in segment])
        (x1, y1), (x2, y2) = points.min(axis=0), points.max(axis=0)
        return float(x1), float(y1), float(x2), float(y2)
    mask = decode_rle(segment, *segment["size"]) if isinstance(segment, dict) else segment
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return 0.0, 0.0, 0.0, 0.0
    return float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1


def encode_rle(mask: NDArray[Any]) -> dict[str, Any]:
    """A mask as compressed run lengths.

    Args:
        mask: (height, width), any type; what is not zero is inside.

    Returns:
        {"size": [height, width], "counts": text}.
    """
    inside = np.asarray(mask).astype(bool).ravel(order="F")
    changes = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    counts = np.diff(np.concatenate([[0], changes, [len(inside)]])).astype(np.int64)
    if len(inside) and inside[0]:
        counts = np.concatenate([[0], counts])
    return {"size": [int(side) for side in mask.shape], "counts": _compress(counts)}


def decode_rle(rle: dict[str, Any], height: int, width: int) -> NDArray[np.bool_]:
    """The mask that run lengths, compressed or not, stand for.

    Returns:
        (height, width) bool.

    Raises:
        UserError: they are of another size, or damaged.
    """
    if problem := _rle_problem(rle, height, width, allow_empty=True):
        raise UserError(f"A mask cannot be decoded: {problem[1]}.")
    counts = _counts(rle["counts"])
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape((height, width), order="F")


def _rle_problem(rle: dict[str, Any], height: int, width: int, allow_empty: bool = False) -> Problem | None:
    if list(rle.get("size", [])) != [height, width]:
        return "RLE of the wrong size", (
            f"its RLE is of size {rle.get('size')} (height, width), its image of {[height, width]}"
        )
    try:
        counts = _counts(rle.get("counts"))
    except (ValueError, TypeError) as error:
        return "damaged RLE", f"the counts of its RLE are damaged ({error})"
    if (counts < 0).any():
        return "damaged RLE", "the counts of its RLE are damaged (a count is negative)"
    if counts.sum() != height * width:
        return "RLE of the wrong size", (
            f"its RLE counts {counts.sum()} pixels, but {height} x {width} are {height * width}"
        )
    if not allow_empty and counts[1::2].sum() == 0:
        return "empty mask", "its RLE has no pixel inside"
    return None


def _counts(counts: Any) -> NDArray[np.int64]:
    if isinstance(counts, str | bytes):
        return _decompress(counts.encode("ascii") if isinstance(counts, str) else counts)
    if not isinstance(counts, list) or not all(type(count) is int for count in counts):
        raise ValueError("they are neither text nor a list of whole numbers")
    return np.array(counts, dtype=np.int64)


def _compress(counts: NDArray[np.int64]) -> str:
    values = counts.copy()
    values[3:] -= counts[1:-2]
    groups = np.zeros((len(values), _MOST_GROUPS), dtype=np.uint8)
    used = np.zeros(groups.shape, dtype=bool)
    more = np.ones(len(values), dtype=bool)
    for place in range(_MOST_GROUPS):
        group = values & 0x1F
        values = values >> 5
        used[:, place] = more
        last = np.where(group & 0x10, values == -1, values == 0)
        more = more & ~last
        groups[:, place] = 48 + group + 0x20 * more
    return groups[used].tobytes().decode("ascii")


def _decompress(text: bytes) -> NDArray[np.int64]:
    groups = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    if len(groups) == 0:
        return np.zeros(0, dtype=np.int64)
    if groups.min() < 0 or groups.max() > 63:
        raise ValueError("a character is none of an RLE")
    ends = np.flatnonzero((groups & 0x20) == 0)
    if len(ends) == 0 or ends[-1] != len(groups) - 1:
        raise ValueError("the last count is cut off")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MOST_GROUPS:
        raise ValueError("a count is too long")
    places = np.arange(len(groups)) - np.repeat(starts, lengths)
    values = np.add.reduceat((groups & 0x1F) << (5 * places), starts)
    values = np.where(groups[ends] & 0x10, values | (-1 << (5 * lengths)), values)
    # From the fourth on, each is stored less the one two before it.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
