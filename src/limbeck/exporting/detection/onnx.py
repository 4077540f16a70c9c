"""A detector as one ONNX file that takes a picture in [0, 1] and gives finished detections.

Normalisation, choice of the best, suppression of doubles and drawing of masks are in the graph; resizing is not, since
antialiased resizing is what runtimes disagree about most. The file takes one picture of one size at a time.
"""

import json
from pathlib import Path

import onnx
import torch

import limbeck
from limbeck.errors import UserError
from limbeck.exporting.detection.frame import Frame
from limbeck.exporting.detection.graph import traced
from limbeck.exporting.onnx import inference_copy, put_metadata, require_small_enough
from limbeck.exporting.runtime import INPUT_NAME, first_line, open_session
from limbeck.files import atomic_write
from limbeck.models.detection.base import Detector


def export_detector_onnx(detector: Detector, path: str | Path) -> Path:
    """Write a detector as an ONNX file.

    The file takes `images` (1, 3, H, W) float32 in [0, 1] at the detector's input size (see `frame` for how an image gets
    to it), and returns, best first, `boxes` (N, 4) float32 as x1, y1, x2, y2 in pixels of that picture, `scores` (N,)
    float32, `labels` (N,) int64 and, of a detector with masks, `masks` (N, H, W) bool. N is what `Detector.detect` finds:
    as many as there are queries, or as many as are left. Its metadata hold the class names in label order, the size, how
    images get to it, the licence and the versions. The detector itself is not changed.

    Args:
        detector: of any family.
        path: the file; folders are made, and a file of this name is replaced only by a complete one.

    Returns:
        The path.

    Raises:
        UserError: the detector cannot be expressed in ONNX, is too large for one file, or the disk is full; nothing is
            written then.
    """
    path, name = Path(path), detector.facts.name
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the file to write, such as {path / 'detector.onnx'}.")
    require_small_enough(name, sum(t.numel() for t in (*detector.parameters(), *detector.buffers())) * 4)
    graph = traced(inference_copy(detector))
    put_metadata(graph, _metadata(detector))
    require_small_enough(name, graph.ByteSize())
    content = graph.SerializeToString()
    try:
        onnx.checker.check_model(content, full_check=True)
        open_session(content)
    # onnx and onnxruntime raise their own kinds of exceptions, without a common base.
    except Exception as error:
        raise UserError(
            f"{name} was exported, but the result is not an ONNX graph that onnxruntime can run: {first_line(error)} "
            "Nothing was written. Report this with the detector's name and torch's version."
        ) from error
    try:
        with atomic_write(path) as file:
            file.write(content)
    except UserError as error:
        raise UserError(f"{error} {path.name} needs {len(content) / 1e6:.1f} MB.") from error
    return path


def _metadata(detector: Detector) -> dict[str, str]:
    frame = Frame.of(detector)
    height, width = frame.size
    placed = (
        f"stretch to {height}x{width} pixels"
        if frame.stretch
        else f"resize, its shape kept, to the largest that fits into {height}x{width} pixels, put it into the upper left "
        "corner, and fill the rest with the padding colour"
    )
    masks = {"masks": f"bool (found, {height}, {width})"} if detector.facts.has_masks else {}
    outputs = {
        "boxes": "float32 (found, 4), x1, y1, x2, y2 in pixels of the picture",
        "scores": "float32 (found,), 0 to 1, best first",
        "labels": "int64 (found,), places in class_names",
        **masks,
    }
    return {
        "task": "detection",
        "model": detector.facts.name,
        "licence": detector.provenance.licence,
        "source": detector.provenance.source,
        "input": f"{INPUT_NAME}: float32 (1, 3, {height}, {width}), RGB in [0, 1]",
        "output": "; ".join(f"{output}: {text}" for output, text in outputs.items()),
        "input_size": json.dumps([height, width]),
        "dynamic_size": json.dumps(False),
        "resize": f"not in the graph; {placed}; bilinear, {'' if frame.antialias else 'not '}antialiased",
        "stretch": json.dumps(frame.stretch),
        "padding_colour": json.dumps(list(frame.colour)),
        "normalisation": "in the graph; do not normalise the images",
        "class_names": json.dumps(list(detector.facts.class_names), ensure_ascii=False),
        "limbeck_version": limbeck.__version__,
        "torch_version": str(torch.__version__),
    }
