"""A model as one ONNX file that takes images in [0, 1] and gives logits.

The graph starts with the normalisation, so that whoever runs it needs no statistics, and at the model's own input
size, so that it holds no resize: antialiased resizing is what runtimes disagree about most. The batch is dynamic, and
the file is tried with several batches before it appears under its name.
"""

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import limbeck
from limbeck.errors import UserError
from limbeck.files import atomic_write
from limbeck.models.base import VisionModel

INPUT_NAME = "images"
OUTPUT_NAME = "logits"

# torch's exporter writes these without converting them from one to the other, which is where graphs get lost.
OPSETS = range(18, 24)
# A protocol buffer, hence an ONNX file in one piece, cannot be larger.
MAX_FILE_BYTES = 2**31 - 1
TRIED_BATCHES = (1, 2, 5)

_NOISY_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


def export_onnx(
    model: VisionModel,
    path: str | Path,
    *,
    opset: int | None = None,
    class_names: Sequence[str] | None = None,
) -> Path:
    """Write a classifier as an ONNX file.

    The file takes `images` (B, 3, H, W) float32 in [0, 1] at the model's input size, for any B, and returns `logits`
    (B, K) float32. Its metadata hold the class names, the input size, what was normalised, the licence and the
    versions. The model itself is not changed, whatever its mode, precision and device.

    Args:
        model: the classifier.
        path: the file; folders are made, and a file of this name is replaced only by a complete one.
        opset: of the ONNX operators, 18 to 23; None lets torch choose.
        class_names: in the order of the logits, for the metadata.

    Returns:
        The path.

    Raises:
        UserError: the model cannot be expressed in ONNX, depends on its batch, is too large for one file, or the disk
            is full; nothing is written then.
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
    _require_small_enough(name, sum(t.numel() for t in (*model.parameters(), *model.buffers())) * 4)
    frozen = inference_copy(model)
    graph = _traced(frozen, opset)
    _describe(graph, model, class_names)
    _require_small_enough(name, graph.ByteSize())
    content = graph.SerializeToString()
    try:
        onnx.checker.check_model(content, full_check=True)
        _try_batches(content, model)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{name} was exported, but the result is not a valid ONNX graph: {_first_line(error)} Nothing was written. "
            "Try another opset, or report this with the model's name and torch's version."
        ) from error
    try:
        with atomic_write(path) as file:
            file.write(content)
    except UserError as error:
        raise UserError(f"{error} {path.name} needs {len(content) / 1e6:.1f} MB.") from error
    return path


def inference_copy(model: VisionModel) -> VisionModel:
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


def open_session(model: str | Path | bytes, threads: int | None = None) -> onnxruntime.InferenceSession:
    """onnxruntime on the CPU, quiet.

    Args:
        model: a file or its content.
        threads: to compute with; None lets onnxruntime choose.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    content = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


class _Logits(nn.Module):
    """Images to logits; `prepare` resizes nothing here, since the images have the model's input size."""

    def __init__(self, model: VisionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images).logits
        return logits


def _traced(model: VisionModel, opset: int | None) -> onnx.ModelProto:
    """The graph of a model, its weights inside, for any batch."""
    # Two images: a batch of one would be taken for a constant.
    images = torch.rand(2, 3, *model.facts.input_size, generator=torch.Generator().manual_seed(0))
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                _Logits(model).eval(),
                (images,),
                dynamo=True,
                dynamic_shapes={INPUT_NAME: {0: torch.export.Dim("batch")}},
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                opset_version=opset,
                verbose=False,
            )
            assert program is not None
            graph: onnx.ModelProto = program.model_proto
    # The exporter runs the model's own code and several compilers over it, each with exceptions of its own.
    except Exception as error:
        raise _not_exportable(model, _first_line(error)) from error
    batch = graph.graph.input[0].type.tensor_type.shape.dim[0]
    if not batch.dim_param:
        # The exporter takes a constant for the batch where the model's code forces it, without a word.
        raise _not_exportable(model, f"its code works for batches of {batch.dim_value} images only.")
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its steps on the screen and in the log; what matters comes as an exception."""
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _describe(graph: onnx.ModelProto, model: VisionModel, class_names: Sequence[str] | None) -> None:
    """Put into the file what its user must know, and take out the traces of the machine that wrote it."""
    height, width = model.facts.input_size
    values = {
        "model": model.facts.name,
        "licence": model.provenance.licence,
        "source": model.provenance.source,
        "input": f"{INPUT_NAME}: float32 (batch, 3, {height}, {width}), RGB in [0, 1]",
        "output": f"{OUTPUT_NAME}: float32 (batch, {model.facts.num_classes}), before the softmax",
        "input_size": json.dumps([height, width]),
        "resize": f"not in the graph; resize to the input size with {model.interpolation} interpolation, antialiased, "
        "and clamp to [0, 1]",
        "normalisation": "in the graph; do not normalise the images",
        "mean": json.dumps([round(value, 6) for value in model.mean.flatten().tolist()]),
        "std": json.dumps([round(value, 6) for value in model.std.flatten().tolist()]),
        "limbeck_version": limbeck.__version__,
        "torch_version": str(torch.__version__),
    }
    if class_names is not None:
        values["class_names"] = json.dumps(list(class_names), ensure_ascii=False)
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


def _try_batches(content: bytes, model: VisionModel) -> None:
    """Run the graph: an image's logits must have the right shape and not depend on how many images it came with.

    Raises:
        UserError: they do.
    """
    session = open_session(content)
    images = np.random.default_rng(0).random((max(TRIED_BATCHES), 3, *model.facts.input_size), dtype=np.float32)
    together: NDArray[np.float32] | None = None
    for size in sorted(TRIED_BATCHES, reverse=True):
        logits, expected = _run(session, images[:size]), (size, model.facts.num_classes)
        together = logits if together is None else together
        near = 1e-3 * max(1.0, float(np.nanmax(np.abs(together), initial=0.0)))
        if logits.shape != expected:
            fault = f"gives logits of shape {logits.shape} instead of {expected}"
        elif not np.allclose(logits, together[:size], rtol=0, atol=near, equal_nan=True):
            fault = f"gives other logits than the same images in a batch of {len(together)}"
        else:
            continue
        raise UserError(
            f"{model.facts.name} was exported, but a batch of {size} {fault}, so the graph depends on the batch. "
            "Nothing was written. Look in the model for shapes or statistics taken from the batch."
        )


def _run(session: onnxruntime.InferenceSession, images: NDArray[np.float32]) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = session.run([OUTPUT_NAME], {INPUT_NAME: images})[0]
    return logits


def _require_small_enough(name: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise UserError(
            f"{name} takes {size / 1e9:.1f} GB; an ONNX file in one piece holds at most {MAX_FILE_BYTES / 1e9:.1f} GB. "
            "Nothing was written. Export a smaller student."
        )


def _first_line(error: BaseException) -> str:
    """What went wrong at the bottom of a chain of exceptions, as one sentence."""
    while (cause := error.__cause__) is not None:
        error = cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    text = text if len(text) <= 300 else text[:297] + "..."
    return text if text.endswith((".", "!", "?")) else text + "."
