"""A detector as one ONNX graph from a picture to finished detections.

Traced is the detector's own `detect`, wherever that can be traced: what is exported is what was trained and measured. Two
of its answers choose masks in ways that ONNX has no words for, and are said again here in words that it has.

transformers' detectors go through torch's exporter. torchvision's keep as many detections as there are, in code that torch's
exporter cannot follow and for which torchvision has rules of its own in the older exporter, by TorchScript; so they go
through that one.
"""

import io
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnxscript import opset18
from torch import Tensor, nn

from limbeck.detection import Pictures, Size
from limbeck.errors import UserError
from limbeck.exporting.runtime import INPUT_NAME, first_line, quiet
from limbeck.models.detection.base import Detector
from limbeck.outputs import Request

# Without their types, which say what each argument may be and not what this one is.
_words: Any = opset18

OUTPUT_NAMES = ("boxes", "scores", "labels", "masks")

# What both exporters can write: the older one ends at 20, and below 18 torch's has to translate.
_OPSET = 18
_MOST_MASKS = 100


def traced(detector: Detector) -> onnx.ModelProto:
    """The graph: `images` (1, 3, H, W) in [0, 1] to `boxes`, `scores`, `labels` and, of a detector with masks, `masks`.

    Args:
        detector: an inference copy; H and W are its input size.

    Raises:
        UserError: it cannot be traced.
    """
    _decide_by_value(detector)
    answers = _answers(detector).eval()
    images = torch.rand(1, 3, *detector.facts.input_size, generator=torch.Generator().manual_seed(0))
    names = list(OUTPUT_NAMES[: 3 + detector.facts.has_masks])
    try:
        with quiet(), torch.no_grad():
            make = _by_torchscript if _is_torchvision(detector) else _by_torch_export
            graph = make(answers, images, names)
    # The exporters run the model's own code and compilers over it, each with exceptions of its own.
    except Exception as error:
        raise UserError(
            f"{detector.facts.name} cannot be exported to ONNX: {first_line(error)} A likely cause is an operator that ONNX "
            "lacks, or a Python branch on what is found. Nothing was written. Export a detector of another family."
        ) from error
    _name_sizes(graph, detector.facts.input_size)
    return graph


def _is_torchvision(detector: Detector) -> bool:
    return detector.rebuild.get("library") == "torchvision"


def _decide_by_value(detector: Detector) -> None:
    """EoMT reads from a tensor whether masks are attended with; a graph takes one way only, so that must be plain numbers."""
    network: Any = detector.network
    shares = getattr(network, "attn_mask_probs", None)
    if not isinstance(shares, Tensor):
        return
    numbers = shares.tolist()
    if any(0 < share < 1 for share in numbers):
        raise UserError(
            f"{detector.facts.name} cannot be exported to ONNX: it attends with masks at random (attn_mask_probs are "
            f"{numbers}), so its answers to one picture differ. Nothing was written. Train it to the end, where they are 0."
        )
    del network.attn_mask_probs
    network.attn_mask_probs = numbers


def _name_sizes(graph: onnx.ModelProto, size: Size) -> None:
    """Say of each output what is known of its shape; the exporters make up names of their own."""
    for output in graph.graph.output:
        dims = output.type.tensor_type.shape.dim
        if not dims[0].dim_value:
            dims[0].dim_param = "found"
        for dim, side in zip(dims[1:], size if output.name == "masks" else (4,), strict=True) if len(dims) > 1 else ():
            dim.dim_value = side


def _answers(detector: Detector) -> nn.Module:
    if not detector.facts.has_masks or _is_torchvision(detector):
        return _Detect(detector)
    return _MaskInstances(detector) if detector.facts.family == "mask_queries" else _QueriesWithMasks(detector)


class _Detect(nn.Module):
    """What the detector finds in a picture whose own area is all of it."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        self.size: Size = detector.facts.input_size

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        (found,) = self.detector.detect(Pictures(images, (self.size,)), [self.size])
        answer = (found.boxes, found.scores, found.labels)
        return answer if found.masks is None else (*answer, found.masks)


class _QueriesWithMasks(_Detect):
    """`detect` of queries that score by sigmoid and have boxes and masks, the masks drawn all at once."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        last = self.detector(Pictures(images, (self.size,)), request=Request(predictions=True)).predictions[-1]
        each = last.logits[0].sigmoid()
        scores, places = each.flatten().topk(min(len(each), each.numel()))
        queries, labels = places // each.shape[-1], places % each.shape[-1]
        centre, extent = last.boxes[0, queries].split(2, -1)
        corners = torch.cat([centre - extent / 2, centre + extent / 2], -1)
        height, width = self.size
        boxes = corners * torch.tensor([width, height, width, height])
        masks = F.interpolate(last.masks[:, queries], self.size, mode="bilinear")[0] > 0
        return boxes, scores, labels, masks


class _MaskInstances(_Detect):
    """`limbeck.models.detection.transformers.mask_instances.instances`; a query chosen for two classes is drawn twice."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        last = self.detector(Pictures(images, (self.size,)), request=Request(predictions=True)).predictions[-1]
        classes = last.logits.shape[-1] - 1
        probabilities = last.logits[0].softmax(-1)[:, :-1].flatten()
        scores, pairs = probabilities.topk(min(_MOST_MASKS, last.logits.shape[1], len(probabilities)))
        drawn = F.interpolate(last.masks[:, pairs // classes], self.size, mode="bilinear", align_corners=False)[0]
        inside = drawn > 0
        area = inside.float().sum((1, 2))
        scores = scores * (drawn.sigmoid() * inside).sum((1, 2)) / area.clamp(min=1)
        scores, order = scores.topk(len(scores))
        shown = area[order] > 0
        order = order[shown]
        inside = inside[order]
        return _tight_boxes(inside), scores[shown], (pairs % classes)[order], inside


def _tight_boxes(masks: Tensor) -> Tensor:
    """(N, H, W) bool, none empty -> (N, 4), x1, y1, x2, y2 around the masks' pixels."""
    sides = []
    for across in (1, 2):
        length = masks.shape[3 - across]
        any_ = masks.float().amax(across)
        numbers = torch.arange(length, dtype=torch.float32)
        sides += [length - (any_ * (length - numbers)).amax(1), (any_ * (numbers + 1)).amax(1)]
    return torch.stack([sides[0], sides[2], sides[1], sides[3]], 1)


def _by_torch_export(answers: nn.Module, images: Tensor, names: list[str]) -> onnx.ModelProto:
    program = torch.onnx.export(
        answers,
        (images,),
        dynamo=True,
        input_names=[INPUT_NAME],
        output_names=names,
        opset_version=_OPSET,
        custom_translation_table={
            torch.ops.aten.sort.stable: _stable_sort,
            torch.ops.aten._is_all_true.default: _all_true,
        },
        verbose=False,
    )
    assert program is not None
    graph: onnx.ModelProto = program.model_proto
    return graph


def _by_torchscript(answers: nn.Module, images: Tensor, names: list[str]) -> onnx.ModelProto:
    written = io.BytesIO()
    torch.onnx.export(
        answers,
        (images,),
        written,  # type: ignore[arg-type]
        dynamo=False,
        input_names=[INPUT_NAME],
        output_names=names,
        opset_version=_OPSET,
        dynamic_axes={name: {0: "found"} for name in names},
    )
    return onnx.load_model_from_string(written.getvalue())


# torch's exporter has no translation of its own for these two.


def _stable_sort(values: Any, *, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """ONNX's TopK puts the lower index first among equals."""
    length = _words.Gather(_words.Shape(values), _words.Constant(value_ints=[dim]), axis=0)
    return _words.TopK(values, length, axis=dim, largest=int(descending), sorted=1)


def _all_true(values: Any) -> Any:
    numbers = _words.Cast(values, to=onnx.TensorProto.INT64)
    return _words.Cast(_words.ReduceMin(numbers, keepdims=0), to=onnx.TensorProto.BOOL)
