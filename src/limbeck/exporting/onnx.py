"""A model as one ONNX file that takes images in [0, 1] and gives logits.

The graph starts with the normalisation, so that whoever runs it needs no statistics, and holds no resize of the images:
antialiased resizing is what runtimes disagree about most. The images have the model's own input size, or any that the
network can take where a dynamic size is asked for. The batch is dynamic, and the file is tried with several batches, and
sizes, before it appears under its name.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import limbeck
from limbeck.errors import UserError
from limbeck.exporting.runtime import INPUT_NAME, OUTPUT_NAME, first_line, open_session, quiet, run
from limbeck.exporting.sizes import (
    Size,
    allow_any_size,
    logits_as_given,
    not_any_size,
    other_sizes,
    require_any_size,
    size_step,
    traced_size,
)
from limbeck.files import atomic_write
from limbeck.models.base import VisionModel

# torch's exporter writes these without converting them from one to the other, which is where graphs get lost.
OPSETS = range(18, 24)
# A protocol buffer, hence an ONNX file in one piece, cannot be larger.
MAX_FILE_BYTES = 2**31 - 1
TRIED_BATCHES = (1, 2, 5)

_Model = TypeVar("_Model", bound=nn.Module)


def export_onnx(
    model: VisionModel,
    path: str | Path,
    *,
    opset: int | None = None,
    class_names: Sequence[str] | None = None,
    dynamic_size: bool = False,
) -> Path:
    """Write a classifier as an ONNX file.

    The file takes `images` (B, 3, H, W) float32 in [0, 1] at the model's input size, for any B, and returns `logits`
    (B, K) float32. Its metadata hold the class names, the input size, what was normalised, the licence and the
    versions. The model itself is not changed, whatever its mode, precision and device.

    With a dynamic size, H and W are any that the network can take, and images are not resized anywhere: the file was
    tried, against the network, at the model's own size and at those in its metadata.

    Args:
        model: the classifier.
        path: the file; folders are made, and a file of this name is replaced only by a complete one.
        opset: of the ONNX operators, 18 to 23; None lets torch choose.
        class_names: in the order of the logits, for the metadata.
        dynamic_size: let height and width of the images vary too. A network with a boolean attribute `dynamic_size`
            is exported with it set.

    Returns:
        The path.

    Raises:
        UserError: the model cannot be expressed in ONNX, depends on its batch, is made for one size where a dynamic one
            was asked for, is too large for one file, or the disk is full; nothing is written then.
    """
    path = Path(path)
    name = model.facts.name
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the file to write, such as {path / 'model.onnx'}.")
    if opset is not None and opset not in OPSETS:
        raise UserError(
            f"ONNX opset {opset} was asked for; {name} can be exported with opset {OPSETS[0]} to {OPSETS[-1]}, or with "
            "None for the exporter's own choice."
        )
    if class_names is not None and len(class_names) != model.facts.num_classes:
        raise UserError(
            f"{len(class_names)} class names were given for {name}, which has {model.facts.num_classes} classes. Give "
            "one name per class, in the order of the logits."
        )
    require_small_enough(name, sum(t.numel() for t in (*model.parameters(), *model.buffers())) * 4)
    frozen = inference_copy(model)
    if dynamic_size:
        allow_any_size(frozen)
        require_any_size(frozen)
    graph = _traced(frozen, opset, dynamic_size)
    _describe(graph, model, class_names, dynamic_size)
    require_small_enough(name, graph.ByteSize())
    content = graph.SerializeToString()
    try:
        onnx.checker.check_model(content, full_check=True)
        session = open_session(content)
        for size in (model.facts.input_size, *(other_sizes(model) if dynamic_size else ())):
            if dynamic_size:
                _try_size(session, frozen, size)
            _try_batches(session, model, size)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{name} was exported, but the result is not a valid ONNX graph: {first_line(error)} Nothing was written. "
            "Try another opset, or report this with the model's name and torch's version."
        ) from error
    try:
        with atomic_write(path) as file:
            file.write(content)
    except UserError as error:
        raise UserError(f"{error} {path.name} needs {len(content) / 1e6:.1f} MB.") from error
    return path


def inference_copy(model: _Model) -> _Model:
    """A copy in evaluation mode, float32 and on the CPU; the model keeps its mode, module by module."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        # Some transformers keep position biases that they computed in evaluation mode and drop them on `train()`. Kept,
        # they would become stale constants in the graph, and those with a gradient cannot even be copied.
        model.train()
        frozen = copy.deepcopy(model)
    finally:
        for module, training in modes:
            module.training = training
    return frozen.cpu().float().eval().requires_grad_(False)


def put_metadata(graph: onnx.ModelProto, values: dict[str, str]) -> None:
    """Put what a file's user must know into it, and take out the traces of the machine that wrote it."""
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, values)
    graph.producer_name = "limbeck"
    graph.producer_version = limbeck.__version__
    # The exporter notes for each node which line of which file made it: the user's folders, and much of the size.
    for part in (graph.graph, *graph.functions):
        for node in part.node:
            del node.metadata_props[:]
            node.doc_string = ""
        for value in part.value_info:
            del value.metadata_props[:]


class _Logits(nn.Module):
    """Images to logits, without a resize."""

    def __init__(self, model: VisionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return logits_as_given(self.model, images)


def _traced(model: VisionModel, opset: int | None, dynamic_size: bool) -> onnx.ModelProto:
    """The graph of a model, its weights inside, for any batch, and for any size where that is asked for."""
    size = traced_size(model) if dynamic_size else model.facts.input_size
    # Two images: a batch of one would be taken for a constant.
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    # As plain names, dimensions may have conditions (a multiple of the patch) that torch.export cannot put into a Dim.
    varying: dict[int, Any] = {0: "batch", 2: "height", 3: "width"} if dynamic_size else {0: torch.export.Dim("batch")}
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                _Logits(model).eval(),
                (images,),
                dynamo=True,
                dynamic_shapes={INPUT_NAME: varying},
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                opset_version=opset,
                verbose=False,
            )
            assert program is not None
            graph: onnx.ModelProto = program.model_proto
    # The exporter runs the model's own code and several compilers over it, each with exceptions of its own.
    except Exception as error:
        if dynamic_size:
            raise not_any_size(model, f"it cannot be traced ({first_line(error).rstrip('.')})") from error
        raise _not_exportable(model, first_line(error)) from error
    batch, _, height, width = graph.graph.input[0].type.tensor_type.shape.dim
    # The exporter takes a constant for a dimension where the model's code forces it, without a word.
    if not batch.dim_param:
        raise _not_exportable(model, f"its code works for batches of {batch.dim_value} images only.")
    if dynamic_size and not (height.dim_param and width.dim_param):
        raise not_any_size(model, "its code, once traced, works for one size only")
    written = next(entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx"))
    if opset is not None and written != opset:
        raise UserError(
            f"{model.facts.name} could only be exported with ONNX opset {written}, not {opset}. Leave the opset out, "
            f"or ask for {written}."
        )
    return graph


def _not_exportable(model: VisionModel, reason: str) -> UserError:
    return UserError(
        f"{model.facts.name} cannot be exported to ONNX: {reason} Likely causes are an operator that ONNX lacks, a "
        "Python branch on a tensor's values, or a shape fixed to one batch size. Nothing was written."
    )


def _describe(
    graph: onnx.ModelProto, model: VisionModel, class_names: Sequence[str] | None, dynamic_size: bool
) -> None:
    """Put into the file what its user must know."""
    height, width = model.facts.input_size
    sides = "height, width" if dynamic_size else f"{height}, {width}"
    resize = (
        f"not in the graph; the network takes images at the size they have, and was tried at multiples of "
        f"{size_step(model)} pixels; the size it was made for is the input size, resized to with {model.interpolation} "
        "interpolation, antialiased, and clamped to [0, 1]"
        if dynamic_size
        else f"not in the graph; resize to the input size with {model.interpolation} interpolation, antialiased, "
        "and clamp to [0, 1]"
    )
    values = {
        "model": model.facts.name,
        "licence": model.provenance.licence,
        "source": model.provenance.source,
        "input": f"{INPUT_NAME}: float32 (batch, 3, {sides}), RGB in [0, 1]",
        "output": f"{OUTPUT_NAME}: float32 (batch, {model.facts.num_classes}), before the softmax",
        "input_size": json.dumps([height, width]),
        "dynamic_size": json.dumps(dynamic_size),
        "resize": resize,
        "normalisation": "in the graph; do not normalise the images",
        "mean": json.dumps([round(value, 6) for value in model.mean.flatten().tolist()]),
        "std": json.dumps([round(value, 6) for value in model.std.flatten().tolist()]),
        "limbeck_version": limbeck.__version__,
        "torch_version": str(torch.__version__),
    }
    if dynamic_size:
        values["tried_sizes"] = json.dumps([list(size) for size in (model.facts.input_size, *other_sizes(model))])
    if class_names is not None:
        values["class_names"] = json.dumps(list(class_names), ensure_ascii=False)
    put_metadata(graph, values)


def _try_size(session: onnxruntime.InferenceSession, model: VisionModel, size: Size) -> None:
    """Run the graph at another size than it was traced at: what was taken for a constant shows here.

    Raises:
        UserError: its logits are not the network's.
    """
    images = np.random.default_rng(0).random((2, 3, *size), dtype=np.float32)
    with torch.no_grad():
        expected = logits_as_given(model, torch.from_numpy(images)).numpy()
    place = f"at {size[0]}x{size[1]} pixels"
    try:
        logits = run(session, images)
    # onnxruntime raises its own kinds of exceptions, without a common base.
    except Exception as error:
        raise not_any_size(model, f"{place} the graph fails ({first_line(error).rstrip('.')})") from error
    near = 1e-3 * max(1.0, float(np.nanmax(np.abs(expected), initial=0.0)))
    if logits.shape != expected.shape or not np.allclose(logits, expected, rtol=0, atol=near, equal_nan=True):
        raise not_any_size(model, f"{place} the graph gives other logits than the network")


def _try_batches(session: onnxruntime.InferenceSession, model: VisionModel, size: Size) -> None:
    """Run the graph: an image's logits must have the right shape and not depend on how many images it came with.

    Raises:
        UserError: they do.
    """
    images = np.random.default_rng(0).random((max(TRIED_BATCHES), 3, *size), dtype=np.float32)
    together: NDArray[np.float32] | None = None
    for batch in sorted(TRIED_BATCHES, reverse=True):
        logits, expected = run(session, images[:batch]), (batch, model.facts.num_classes)
        together = logits if together is None else together
        near = 1e-3 * max(1.0, float(np.nanmax(np.abs(together), initial=0.0)))
        if logits.shape != expected:
            fault = f"gives logits of shape {logits.shape} instead of {expected}"
        elif not np.allclose(logits, together[:batch], rtol=0, atol=near, equal_nan=True):
            fault = f"gives other logits than the same images in a batch of {len(together)}"
        else:
            continue
        raise UserError(
            f"{model.facts.name} was exported, but a batch of {batch} {fault}, so the graph depends on the batch. "
            "Nothing was written. Look in the model for shapes or statistics taken from the batch."
        )


def require_small_enough(name: str, size: int) -> None:
    """Nothing for a model of so many bytes that fits into one file.

    Raises:
        UserError: it does not.
    """
    if size > MAX_FILE_BYTES:
        raise UserError(
            f"{name} takes {size / 1e9:.1f} GB; an ONNX file in one piece holds at most {MAX_FILE_BYTES / 1e9:.1f} GB. "
            "Nothing was written. Export a smaller student."
        )
