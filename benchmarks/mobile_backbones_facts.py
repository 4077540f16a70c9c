"""What a mobile backbone costs, without training it: parameters, multiply-adds, activations, latency.

Everything is counted and timed in the deployed form: branches that exist for training only (RepViT, FastViT, LeViT) are
folded into one convolution first. Multiply-adds are those of convolutions and matrix products (torch's counter, attention
included); activations are the numbers that those same operators put out (fvcore's counter, as timm publishes them).
"""

import json
import logging
import math
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from limbeck.errors import UserError
from limbeck.exporting.latency import onnx_latency
from limbeck.exporting.onnx import export_onnx
from limbeck.files import atomic_write
from limbeck.models import VisionModel, load_model

ROUNDS = 3
ATTENTION = "aten::scaled_dot_product_attention"
# fvcore also counts norms, pooling and resizing, which torch's counter and the published tables leave out.
COUNTED = ("conv", "linear", "addmm", "matmul", "bmm", "einsum", "scaled_dot_product_attention")


def measure_facts(
    wanted: list[tuple[str, dict[int, int]]],
    *,
    folder: Path,
    threads: int,
    runs: int,
    stem: Callable[[str], str],
) -> None:
    """Write FOLDER/STEM_SIDE.json for each network and size that has none yet.

    Args:
        wanted: models' names, each with its input sides in pixels and their number of classes.
        folder: for the facts and the exported files.
        threads: of onnxruntime.
        runs: timed runs per round; the networks take turns over all rounds, so that a busy moment of the machine does
            not fall on one of them.
        stem: a name's file name.
    """
    found: dict[Path, dict[str, Any]] = {}
    for name, sizes in wanted:
        for side, classes in sizes.items():
            path = folder / f"{stem(name)}_{side}.json"
            if path.is_file():
                continue
            try:
                model = deployed(load_model(name, num_classes=classes, pretrained=False, input_size=(side, side)))
                found[path] = {"name": name, "size": side, "classes": classes, **counts(model)}
                export_onnx(model, path.with_suffix(".onnx"))
            except UserError as error:
                print(f"{name} at {side} pixels: {error}", flush=True)
            else:
                print(f"{name} at {side} pixels: {found[path]['macs'] / 1e6:.1f} M multiply-adds", flush=True)
    exported = [path for path in found if path.with_suffix(".onnx").is_file()]
    medians: dict[Path, list[float]] = {path: [] for path in exported}
    for _ in range(ROUNDS):
        for path in exported:
            measured = onnx_latency(path.with_suffix(".onnx"), threads=threads, runs=runs)
            medians[path].append(measured.median_ms)
    for path, values in found.items():
        values["latency_ms"] = statistics.median(medians[path]) if path in medians else None
        with atomic_write(path) as file:
            file.write(json.dumps(values, indent=2).encode() + b"\n")


def deployed(model: VisionModel) -> VisionModel:
    """The same function with its training-time branches folded, in evaluation mode."""
    model.eval().requires_grad_(False)
    network = getattr(model, "network", None)
    if isinstance(network, nn.Module):
        model.network = reparameterize_model(network)
    return model


def counts(model: VisionModel) -> dict[str, int]:
    """Parameters, multiply-adds and activations of one image.

    Raises:
        AssertionError: torch's and fvcore's counts of the same operators differ.
    """
    images = torch.zeros(1, 3, *model.facts.input_size)
    # Fused attention has no count on every device; its plain form is the same arithmetic.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images)
    macs = int(counter.get_total_flops()) // 2
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    bare = _Logits(model).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        products = FlopCountAnalysis(bare, images).set_op_handle(ATTENTION, _attention_macs)
        second = sum(int(value) for name, value in products.by_operator().items() if name in COUNTED)
        activations = ActivationCountAnalysis(bare, images).set_op_handle(ATTENTION, _attention_activations).total()
    assert abs(second - macs) <= 1e-3 * macs, f"{model.facts.name}: torch counts {macs}, fvcore {second}"
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "macs": macs,
        "activations": int(activations),
    }


class _Logits(nn.Module):
    """Tracing wants tensors; the images have the model's size already."""

    def __init__(self, model: VisionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images).logits
        return logits


def _attention_macs(inputs: list[Any], _outputs: list[Any]) -> int:
    """Of q (..., N, D), k (..., M, D), v (..., M, E): both products."""
    query, key, value = (get_shape(tensor) for tensor in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _attention_activations(inputs: list[Any], outputs: list[Any]) -> int:
    """The map of all pairs and the result."""
    query, key = (get_shape(tensor) for tensor in inputs[:2])
    return int(math.prod(query[:-1]) * key[-2] + math.prod(get_shape(outputs[0])))
