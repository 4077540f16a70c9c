"""A float ONNX file as one with int8 weights, which is a quarter as large and computes in 8-bit integers.

Post-training static quantisation by onnxruntime, in the QDQ format: weights of convolutions and linear layers become
int8 with a scale per output channel, what enters them 8-bit with one scale per tensor, found on real images. Additions,
norms, softmax, GELU, hard-swish and the product of two activations (attention) stay in float.

How, and why so (measured on our own networks and timm's, on a processor with 8-bit dot products):

* Activations are uint8 with a zero point: int8 ones, symmetric or not, made a convolutional network slower than float,
  uint8 ones twice as fast, and symmetric ranges waste half of their steps after a ReLU.
* A ReLU joins its convolution, whose negative outputs then take no steps. Results of linear layers stay in float, as
  what follows them does: quantising them too made a vision transformer both slower and less exact.
* A range is the mean over batches of 16 images of each batch's extremes. The extremes of all images let one odd image
  take most of the steps, which cost a MobileNetV3 three points; percentiles and entropy cost it one to four, and keep
  every activation of every image in memory. Means over single images cut off too much of a transformer's.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from limbeck.errors import UserError
from limbeck.exporting.comparison import labelled_batches
from limbeck.exporting.runtime import INPUT_NAME, first_line, open_session, quiet, run
from limbeck.files import atomic_write

# With weights of their own; clips and ReLUs only join the layer before them.
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
ACTIVATIONS = ("Relu", "Clip")
IMAGES_PER_RANGE = 16
TRIED_BATCHES = (1, 2, 5)


def quantize_int8(
    path: str | Path,
    images: Iterable[Tensor] | Iterable[Mapping[str, Tensor]],
    out: str | Path | None = None,
    *,
    max_images: int = 128,
    reduce_range: bool = False,
) -> Path:
    """Write an exported file again with int8 weights and 8-bit activations.

    The file takes and gives what the float file does, for any batch, and any size where that one does; its metadata
    are the same and say how it was calibrated. Its answers are near the float file's, not equal: measure them with
    `measure_quantization`.

    Args:
        path: a float file, as `export_onnx` writes it; left as it is.
        images: training images to calibrate with, at the file's input size: batches (b, 3, H, W) in [0, 1], or a
            loader's batches, mappings with `image`. Of all classes, not augmented.
        out: the file; by default NAME.int8.onnx beside NAME.onnx.
        max_images: take no more images than so many.
        reduce_range: give weights 7 of the 8 bits. For x86 processors without 8-bit dot products (VNNI), whose sums of
            two 8-bit products can saturate.

    Returns:
        The file.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is no float file that onnxruntime can run, there are no images or they have another size, nothing
            in it can be quantised, or the disk is full; nothing is written then.
    """
    path = Path(path)
    out = path.with_name(f"{path.stem}.int8.onnx") if out is None else Path(out)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path} to quantise.")
    if max_images < 1:
        raise UserError(f"{max_images} images were asked for to calibrate {path.name}; at least 1 is needed.")
    metadata, size = _look_into(path)
    calibration = _gathered(path, images, max_images, size)
    with tempfile.TemporaryDirectory(prefix="limbeck-int8-") as folder:
        try:
            with quiet():
                graph = _quantized(path, Path(folder), calibration, reduce_range)
            _describe(graph, metadata, len(calibration))
            content = graph.SerializeToString()
            _try_batches(content, calibration)
        except UserError:
            raise
        # onnx, onnxruntime and its quantiser raise their own kinds of exceptions, without a common base.
        except Exception as error:
            raise UserError(
                f"{path.name} could not be quantised to int8: {first_line(error)} {path} itself is untouched and can be "
                "used as it is. Leave quantize out, or report this with the model's name and onnxruntime's version."
            ) from error
    with atomic_write(out) as file:
        file.write(content)
    return out


class _Batches(CalibrationDataReader):
    """The calibration images in batches that each hold images from everywhere in their order."""

    def __init__(self, images: NDArray[np.float32]) -> None:
        count = max(1, round(len(images) / IMAGES_PER_RANGE))
        self.batches: Iterator[NDArray[np.float32]] = (images[start::count] for start in range(count))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT_NAME: np.ascontiguousarray(batch)}


def _look_into(path: Path) -> tuple[dict[str, str], tuple[int, int] | None]:
    """The float file's metadata, and its input size in pixels; None where that is dynamic."""
    try:
        session = open_session(path)
    # onnxruntime raises its own kinds of exceptions, without a common base.
    except Exception as error:
        raise UserError(
            f"{path} is not an ONNX file that onnxruntime can run: {first_line(error)} Export the model again."
        ) from error
    inputs = session.get_inputs()
    metadata = dict(session.get_modelmeta().custom_metadata_map)
    if [entry.name for entry in inputs] != [INPUT_NAME] or "quantisation" in metadata:
        kind = "is quantised already" if "quantisation" in metadata else "was not written by limbeck export"
        raise UserError(f"{path} {kind}; give the float file that limbeck export writes.")
    height, width = inputs[0].shape[2:]
    return metadata, (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _gathered(
    path: Path,
    images: Iterable[Tensor] | Iterable[Mapping[str, Tensor]],
    max_images: int,
    size: tuple[int, int] | None,
) -> NDArray[np.float32]:
    """At most `max_images` images (N, 3, H, W)."""
    batches = [batch.numpy() for batch, _ in labelled_batches(images, None, max_images)]
    if not batches:
        raise UserError(f"There are no images to calibrate {path.name} with; give at least one training image.")
    shapes = {batch.shape[1:] for batch in batches}
    if len(shapes) > 1 or (size is not None and shapes != {(3, *size)}):
        found = ", ".join("x".join(map(str, shape)) for shape in sorted(shapes))
        raise UserError(
            f"The images to calibrate {path.name} with are {found}; they must all be "
            f"{'3xHxW of one size' if size is None else f'3x{size[0]}x{size[1]}'}, as the file takes them."
        )
    return np.concatenate(batches)


def _quantized(path: Path, folder: Path, images: NDArray[np.float32], reduce_range: bool) -> onnx.ModelProto:
    prepared, finished = folder / "prepared.onnx", folder / "int8.onnx"
    # The shapes that torch's exporter wrote are enough; onnxruntime's symbolic ones need another package.
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    floats = _layers_in_float(path, onnx.load(prepared))
    quantize_static(
        str(prepared),
        str(finished),
        _Batches(images),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=[*LAYERS, *ACTIVATIONS],
        nodes_to_exclude=floats,
        per_channel=True,
        reduce_range=reduce_range,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={
            "CalibMovingAverage": True,
            "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
        },
    )
    graph: onnx.ModelProto = onnx.load(finished)
    return graph


def _layers_in_float(path: Path, graph: onnx.ModelProto) -> list[str]:
    """Names of the products of two activations, which have no weights to make smaller."""
    weights = {entry.name for entry in graph.graph.initializer}
    layers = [node for node in graph.graph.node if node.op_type in LAYERS]
    floats = [node.name for node in layers if node.input[1] not in weights]
    if len(floats) == len(layers):
        raise UserError(
            f"{path.name} has no convolution and no linear layer with weights, so int8 would make it neither smaller "
            "nor faster. Use it as it is."
        )
    return floats


def _describe(graph: onnx.ModelProto, metadata: dict[str, str], images: int) -> None:
    """The float file's metadata and how it was quantised; and nothing of what the optimiser left behind."""
    del graph.metadata_props[:]
    onnx.helper.set_model_props(
        graph,
        {
            **metadata,
            "quantisation": "int8 weights per channel, uint8 activations per tensor, static (QDQ)",
            "calibration_images": json.dumps(images),
            "onnxruntime_version": onnxruntime.__version__,
        },
    )
    used = {node.domain or "ai.onnx" for node in graph.graph.node} | {"ai.onnx"}
    kept = [entry for entry in graph.opset_import if (entry.domain or "ai.onnx") in used]
    del graph.opset_import[:]
    graph.opset_import.extend(kept)


def _try_batches(content: bytes, images: NDArray[np.float32]) -> None:
    """Run the file with several batches of the calibration images.

    Raises:
        UserError: a logit is not finite.
    """
    session = open_session(content)
    for batch in TRIED_BATCHES:
        logits = run(session, np.resize(images, (batch, *images.shape[1:])))
        if len(logits) != batch or not np.isfinite(logits).all():
            raise UserError(
                f"The int8 file gives logits of shape {logits.shape} for {batch} images, or some that are not finite, so "
                "it cannot be used. Nothing was written; use the float file."
            )
