"""What a distillation step of detectors costs beyond the student's step and what the method needs of the teacher.

    python benchmarks/detection_step_cost.py --cpu_time --threads 1 --repeats 5

Columns as in step_cost.py, all jobs taking turns in one run, with one difference: methods ask a detector for different
parts, so each is compared with the teacher's pass that it needs. Methods on maps need its backbone and pyramid (or
encoder) alone; `whole teacher` is the pass to its predictions. For every method:

    measured   step / (plain student step + the teacher's pass that the method needs)
    predicted  1 + the method's own multiply-adds / those of both
    operators  the same with times: the method's own matrix products and convolutions alone
    of student step / plain student step: how many times as long training takes as without a teacher

What a method asks of the heads while it compares is its own: the teacher's heads on the student's regions (`roi_kd`),
both decoders on shared queries (`shared_queries`; what the gradient costs beyond the student's decoder is left out).
Every query of these random teachers looks like an object, so `query_kd` matches all of them, more than it would of a
trained one.
"""

import argparse
import copy
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from step_cost import (
    UPDATE,
    Job,
    autocasting,
    count,
    heading,
    make_optimizer,
    measured,
    operators,
    over,
    size_of,
    start,
    take_turns,
    whole_step,
    write,
)
from torch import Tensor

from limbeck.detection import DetectionOutputs, Pictures, Target
from limbeck.distiller import DetectionDistiller
from limbeck.errors import UserError
from limbeck.models.detection.base import Detector
from limbeck.models.detection.door import load_detector
from limbeck.outputs import Request

ON_MAPS = ("pkd", "fitnets", "cwd", "mgd", "manifold", "reviewkd", "fgd")


@dataclass(frozen=True)
class Pair:
    """Teacher and student with random weights, the pictures they are given, and the methods that suit them."""

    teacher: str
    student: str
    side: int
    batch: int
    optimizer: str
    methods: tuple[str, ...]


YOLOS = "hf:yolos(hidden_size={0}, num_attention_heads={1}, intermediate_size={2}, image_size=[320, 320], num_hidden_layers=12)"
PAIRS = {
    "faster_rcnn": Pair(
        "torchvision:faster_rcnn(backbone=resnet50)",
        "torchvision:faster_rcnn(backbone=resnet18)",
        320,
        2,
        "sgd",
        ("none", *ON_MAPS, "roi_kd"),
    ),
    "yolos": Pair(
        YOLOS.format(384, 6, 1536),
        YOLOS.format(192, 3, 768),
        320,
        2,
        "adamw",
        ("none", "pkd", "manifold", "reviewkd", "vitkd", "query_kd"),
    ),
    "rt_detr": Pair(
        "hf:rt_detr",
        "hf:rt_detr(backbone_config={'model_type': 'rt_detr_resnet', 'layer_type': 'basic', 'depths': [2, 2, 2, 2], "
        "'hidden_sizes': [64, 128, 256, 512], 'out_features': ['stage2', 'stage3', 'stage4']}, "
        "encoder_in_channels=[128, 256, 512], hidden_expansion=0.5, decoder_layers=3)",
        320,
        2,
        "adamw",
        ("none", "pkd", "reviewkd", "query_kd", "shared_queries"),
    ),
}
SMALL_RCNN = "torchvision:faster_rcnn(backbone=mobilenet_v3_small, fpn_channels={}, head_channels=16)"
SMALL_RT_DETR = (
    "hf:rt_detr(backbone_config={{'model_type': 'rt_detr_resnet', 'embedding_size': 4, 'hidden_sizes': [4, 8, 8, 8], "
    "'depths': [1, 1, 1, 1], 'layer_type': 'basic', 'out_indices': [2, 3, 4]}}, encoder_in_channels=[8, 8, 8], "
    "encoder_hidden_dim={0}, d_model={0}, decoder_in_channels=[{0}, {0}, {0}], encoder_ffn_dim=16, num_queries=7, "
    "encoder_attention_heads=2, decoder_attention_heads=2, decoder_layers=2, decoder_ffn_dim=16, num_denoising=6)"
)
SMOKE = {
    "smoke_rcnn": Pair(SMALL_RCNN.format(24), SMALL_RCNN.format(16), 64, 2, "sgd", ("none", "pkd", "fgd", "roi_kd")),
    "smoke_queries": Pair(
        SMALL_RT_DETR.format(32),
        SMALL_RT_DETR.format(16),
        64,
        2,
        "adamw",
        ("none", "pkd", "query_kd", "shared_queries", "roi_kd"),
    ),
}
CLASSES = tuple(f"class {number}" for number in range(20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--methods", nargs="+", default=None, help="instead of each pair's own")
    out = Path("benchmarks/results/detection_step_cost_cpu")
    parser.add_argument("--out", type=Path, default=out, help="without suffix")
    options, device, results = start(parser)
    for name in SMOKE if options.smoke else options.pairs:
        results["pairs"][name] = measure_pair((SMOKE if options.smoke else PAIRS)[name], options, device)
    write(results, markdown(results), options.out)


def measure_pair(pair: Pair, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Times and multiply-adds of every method on one pair."""
    torch.manual_seed(0)
    batch = options.batch or pair.batch
    teacher = opened(pair.teacher, pair.side).to(device).eval().requires_grad_(False)
    student = opened(pair.student, pair.side)
    pictures, targets = scene(batch, pair.side, device)
    autocast = autocasting(options, device)

    plain = copy.deepcopy(student).to(device).train()
    jobs: dict[str, Job] = {"student": plain_step(plain, pair, pictures, targets, autocast)}
    student_adds = count(lambda: plain_loss(plain, pictures, targets, autocast).backward())
    student_adds += UPDATE[pair.optimizer] * size_of(plain.parameters())
    whole = Request(predictions=True, regions=True)
    jobs["whole teacher"] = teacher_pass(teacher, pictures, whole, autocast)
    own: dict[str, int] = {}
    needed: dict[str, int] = {}
    refused: dict[str, str] = {}
    for method in options.methods or pair.methods:
        try:
            distiller = DetectionDistiller(teacher, copy.deepcopy(student), method)
        except UserError as error:
            refused[method] = str(error)
            continue
        distiller.to(device).train()
        distiller.set_epoch(1000)
        loss = bare_loss(distiller, pictures, targets, autocast)
        own[method] = count(loss) + UPDATE[pair.optimizer] * size_of(distiller.losses.parameters())
        needs = distiller.teacher_request if distiller.losses else None
        jobs[f"teacher of {method}"] = teacher_pass(teacher, pictures, needs, autocast)
        needed[method] = count(jobs[f"teacher of {method}"])
        jobs[f"operators of {method}"] = operators(loss, distiller.losses, pair.optimizer)
        jobs[f"losses of {method}"] = loss
        jobs[f"step of {method}"] = whole_step(distiller, pair.optimizer, pictures, targets, autocast)
    whole_adds = count(jobs["whole teacher"])
    times = take_turns(jobs, options, device)

    def row(method: str) -> dict[str, Any]:
        base = [s + t for s, t in zip(times["student"], times[f"teacher of {method}"], strict=True)]
        return {
            **measured(times, method, base),
            "predicted": 1 + own[method] / (student_adds + needed[method]),
            "of_student": over(times[f"step of {method}"], times["student"]),
            "teacher_ms": 1e3 * statistics.median(times[f"teacher of {method}"]),
            "teacher_multiply_adds": needed[method],
            "own_multiply_adds": own[method],
        }

    return {
        **{key: value for key, value in vars(pair).items() if key != "methods"},
        "batch": batch,
        "student_ms": 1e3 * statistics.median(times["student"]),
        "student_multiply_adds": student_adds,
        "whole_teacher_ms": 1e3 * statistics.median(times["whole teacher"]),
        "whole_teacher_multiply_adds": whole_adds,
        "refused": refused,
        "methods": {method: row(method) for method in own},
    }


def opened(name: str, side: int) -> Detector:
    """A detector with random weights that has an opinion: heads start out sure that there is nothing."""
    detector = load_detector(name, class_names=CLASSES, pretrained=False, short=side, long=side)
    with torch.no_grad():
        for parameter in detector.parameters():
            if parameter.max() < -1:
                parameter.zero_()
    return detector


def scene(batch: int, side: int, device: torch.device) -> tuple[Pictures, list[Target]]:
    """Noise with eight boxes each."""
    pictures = Pictures(torch.rand(batch, 3, side, side, device=device), ((side, side),) * batch)
    targets = []
    for _ in range(batch):
        corners, extents = side * torch.rand(2, 8, 2, device=device) / 2
        boxes = torch.cat([corners, corners + extents + 1], dim=1)
        targets.append(Target(boxes.clamp(max=side), torch.randint(len(CLASSES), (8,), device=device)))
    return pictures, targets


def plain_loss(student: Detector, pictures: Pictures, targets: list[Target], autocast: Callable[[], Any]) -> Tensor:
    with autocast():
        return torch.stack([*student(pictures, targets).losses.values()]).sum()


def plain_step(
    student: Detector, pair: Pair, pictures: Pictures, targets: list[Target], autocast: Callable[[], Any]
) -> Job:
    """A step of ordinary training, written without the Distiller."""
    optimizer = make_optimizer(student.parameters(), pair.optimizer)

    def step() -> None:
        optimizer.zero_grad()
        plain_loss(student, pictures, targets, autocast).backward()
        optimizer.step()

    return step


def teacher_pass(teacher: Detector, pictures: Pictures, needs: Request | None, autocast: Callable[[], Any]) -> Job:
    def run() -> None:
        if needs is None:
            return
        with torch.no_grad(), autocast():
            teacher(pictures, None, needs)

    return run


def bare_loss(
    distiller: DetectionDistiller, pictures: Pictures, targets: list[Target], autocast: Callable[[], Any]
) -> Job:
    """The losses' forward and backward passes between answers that are there already."""
    with torch.no_grad(), autocast():
        taught = distiller.teacher_step(pictures)
        said: DetectionOutputs = distiller.student(pictures, targets, distiller.student_request)
    said_tensors = list(tensors(said))
    for tensor in said_tensors:
        tensor.requires_grad_()

    def run() -> None:
        if taught is None:
            return
        with autocast():
            torch.stack([loss(said, taught, targets) for loss in distiller.losses]).sum().backward()
        # Fresh gradients as in a step, not sums with those of the last call.
        for tensor in (*said_tensors, *distiller.parameters()):
            tensor.grad = None

    return run


def tensors(said: DetectionOutputs) -> Iterator[Tensor]:
    """All that a loss may take a gradient of."""
    parts = [*said.maps.values(), said.final]
    for answer in said.predictions:
        parts += [answer.logits, answer.boxes, answer.masks, answer.corners]
    if said.regions is not None:
        parts += [said.regions.logits, said.regions.deltas, said.regions.mask_logits]
    yield from (part for part in parts if part is not None)


def markdown(results: dict[str, Any]) -> str:
    lines = heading("Cost of a step between detectors", results)
    for name, pair in results["pairs"].items():
        lines += [
            "",
            f"## {name}, {pair['side']} px, batch {pair['batch']}, {pair['optimizer']}",
            "",
            f"Teacher `{pair['teacher']}`, student `{pair['student']}`.",
            "",
            f"Plain student step {pair['student_ms']:.1f} ms, {pair['student_multiply_adds'] / 1e9:.3f} G multiply-adds; the "
            f"whole teacher's pass {pair['whole_teacher_ms']:.1f} ms, {pair['whole_teacher_multiply_adds'] / 1e9:.3f} G. Ratios "
            "are over the student's step and the teacher's pass that the method needs; the last column is over the student's "
            "step alone.",
            "",
            "| method | teacher's pass | measured (quartiles) | predicted by multiply-adds | own operators timed alone "
            "| losses timed alone | measured / predicted | measured / operators | step over plain step |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for method, row in pair["methods"].items():
            low, high = row["measured_quartiles"]
            lines.append(
                f"| {method} | {row['teacher_ms']:.1f} ms, {row['teacher_multiply_adds'] / 1e9:.3f} G "
                f"| {row['measured']:.3f} ({low:.3f} to {high:.3f}) | {row['predicted']:.3f} | {row['operators']:.3f} "
                f"| {row['losses']:.3f} | {row['measured'] / row['predicted']:.3f} "
                f"| {row['measured'] / row['operators']:.3f} | {row['of_student']:.2f} |"
            )
        lines += [f"\n{method}: {reason}" for method, reason in pair["refused"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
