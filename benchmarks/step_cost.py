"""What a distillation step costs beyond its student step and teacher pass, in time and memory.

    python benchmarks/step_cost.py --out benchmarks/results/step_cost_cpu
    python benchmarks/step_cost.py --device cuda --bf16 --compile --batch 256 --out benchmarks/results/step_cost_gpu

For every method, all in one run, jobs taking turns in a new order each round:

    measured   step / (plain student step + teacher pass); the step is the teacher's pass, the student's pass, all
               losses, the backward pass and the optimiser's update of student and projectors
    predicted  1 + the method's own multiply-adds / those of the plain step and the teacher's pass
    operators  the same with times: the method's own matrix products and convolutions alone, forward and backward,
               on tensors of the same shapes and strides, and the update of its projectors

A multiply-add takes longer in a thin high-resolution convolution than in a wide layer, which `operators` allows for
and `predicted` does not. Neither knows element-wise work: norms, softmaxes, resizing, differences. `none` is the
plain step made through the Distiller, with the teacher's pass beside it: what it shows above 1 is noise and plumbing.

    memory     the most that a step holds at once, over the same of `none`, weights and optimiser states not counted
"""

import argparse
import copy
import gc
import json
import os
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from limbeck import Distiller
from limbeck.distiller import Distillation
from limbeck.errors import UserError
from limbeck.losses.catalogue import METHODS as CATALOGUE
from limbeck.models import VisionModel, load_model
from limbeck.outputs import Outputs, Request
from limbeck.verbs.provenance import environment

Job = Callable[[], object]
FULL = "manifold(intra=0.0, inter=0.0, random=0.0, full=1.0)"
METHODS = ("none", *(name for name, info in CATALOGUE.items() if "classification" in info.tasks), FULL, "vitkd+nkd")
ALLOCATOR = ("THP_MEM_ALLOC_ENABLE", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "LD_PRELOAD")
DATA_SET = 50_000
"""Training images, of each of which some losses keep something."""
# Element-wise multiply-adds of one update per parameter: decay, momenta, step.
UPDATE = {"sgd": 3, "adamw": 8}


@dataclass(frozen=True)
class Pair:
    """Teacher and student with random weights, and the batch they are given."""

    teacher: str
    student: str
    side: int
    batch: int
    classes: int
    optimizer: str


PAIRS = {
    "cifar": Pair("limbeck:resnet56", "limbeck:resnet20", 32, 64, 100, "sgd"),
    "deit": Pair("deit_small_patch16_224", "deit_tiny_patch16_224", 224, 8, 1000, "adamw"),
}
SMOKE = {
    "smoke_cnn": Pair("limbeck:resnet14", "limbeck:resnet8", 16, 4, 10, "sgd"),
    "smoke_vit": Pair("test_vit3", "test_vit", 64, 3, 10, "adamw"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--compile", action="store_true", help="compile student with losses, and teacher")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/step_cost_cpu"), help="without suffix")
    options, device, results = start(parser)
    for name in SMOKE if options.smoke else options.pairs:
        results["pairs"][name] = measure_pair((SMOKE if options.smoke else PAIRS)[name], options, device)
    write(results, markdown(results), options.out)


def start(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, torch.device, dict[str, Any]]:
    """The options, those of every benchmark of steps among them, the device, and what the results begin with."""
    parser.add_argument("--batch", type=int, default=None, help="another batch size for every pair")
    parser.add_argument("--repeats", type=int, default=20, help="rounds that count, at least 2")
    parser.add_argument("--warmups", type=int, default=3, help="rounds before them")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument(
        "--cpu_time",
        action="store_true",
        help="count this process's seconds on the CPU instead of the clock's, where others use the machine; one thread",
    )
    parser.add_argument("--smoke", action="store_true", help="tiny models and sizes instead; for tests")
    options = parser.parse_args()
    if options.repeats < 2:
        parser.error("--repeats must be at least 2.")
    if options.cpu_time and (options.device != "cpu" or options.threads != 1):
        parser.error("--cpu_time adds up all threads and no GPU: use it with --device cpu --threads 1.")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    # CPU times of networks whose values decay into denormal numbers would be those of the denormal numbers.
    torch.set_flush_denormal(True)
    device = torch.device(options.device)
    results: dict[str, Any] = {
        "command": shlex.join(["python", *sys.argv]),
        "environment": environment(device),
        "threads": torch.get_num_threads(),
        # Large pages decide how dear fresh memory is, which is a good part of element-wise work on CPUs.
        "allocator": {name: os.environ[name] for name in ALLOCATOR if name in os.environ},
        "settings": {key: value for key, value in vars(options).items() if key != "out"},
        "pairs": {},
    }
    return options, device, results


def write(results: dict[str, Any], text: str, out: Path) -> None:
    """Print the page, and write the results as JSON and the page beside them."""
    print(text)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_name(out.name + ".json").write_text(json.dumps(results, indent=2) + "\n")
    out.with_name(out.name + ".md").write_text(text)


def measure_pair(pair: Pair, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Times and multiply-adds of every method on one pair."""
    torch.manual_seed(0)
    batch = options.batch or pair.batch
    size: dict[str, Any] = {"num_classes": pair.classes, "pretrained": False, "input_size": (pair.side, pair.side)}
    teacher = (
        load_model(pair.teacher, **size).to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    )
    student = load_model(pair.student, **size)
    images = torch.rand(batch, 3, pair.side, pair.side, device=device).contiguous(memory_format=torch.channels_last)
    target = torch.randint(pair.classes, (batch,), device=device)

    autocast = autocasting(options, device)
    plain = copy.deepcopy(student).to(device, memory_format=torch.channels_last).train()
    jobs: dict[str, Job] = {
        "student": plain_step(plain, pair, images, target, autocast, options.compile),
        "teacher": teacher_pass(teacher, images, autocast, options.compile),
    }
    baseline = count(lambda: plain_loss(plain, images, target, autocast).backward())
    baseline += count(lambda: teacher(images, Request())) + UPDATE[pair.optimizer] * size_of(plain.parameters())
    own: dict[str, int] = {}
    refused: dict[str, str] = {}
    for method in options.methods:
        try:
            distiller = Distiller(teacher, copy.deepcopy(student), method)
        except UserError as error:
            refused[method] = str(error)
            continue
        distiller.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        distiller.set_epoch(1000)
        distiller.expect_images(DATA_SET)
        distiller.calibrate(lambda: [images])
        loss = bare_loss(distiller, images, target, autocast)
        own[method] = count(loss) + UPDATE[pair.optimizer] * size_of(distiller.losses.parameters())
        jobs[f"operators of {method}"] = operators(loss, distiller.losses, pair.optimizer)
        jobs[f"losses of {method}"] = loss
        beside = jobs["teacher"] if not distiller.losses else None
        jobs[f"step of {method}"] = whole_step(
            distiller, pair.optimizer, images, target, autocast, compiled=options.compile, beside=beside
        )
    times = take_turns(jobs, options, device)
    base = [s + t for s, t in zip(times["student"], times["teacher"], strict=True)]
    memory = {method: peak_memory(jobs[f"step of {method}"], device) for method in own}
    return {
        **vars(pair),
        "batch": batch,
        "student_ms": 1e3 * statistics.median(times["student"]),
        "teacher_ms": 1e3 * statistics.median(times["teacher"]),
        "multiply_adds": baseline,
        "refused": refused,
        "methods": {
            method: {"predicted": 1 + own[method] / baseline, **measured(times, method, base)}
            | {"own_multiply_adds": own[method], "memory_bytes": memory[method]}
            for method in own
        },
    }


def measured(times: dict[str, list[float]], method: str, base: list[float]) -> dict[str, Any]:
    """What was measured of one method, over the seconds of `base`."""
    return {
        "measured": over(times[f"step of {method}"], base),
        "measured_quartiles": quartiles(times[f"step of {method}"], base),
        "operators": 1 + over(times[f"operators of {method}"], base),
        "losses": 1 + over(times[f"losses of {method}"], base),
        "step_ms": 1e3 * statistics.median(times[f"step of {method}"]),
        "operators_ms": 1e3 * statistics.median(times[f"operators of {method}"]),
        "losses_ms": 1e3 * statistics.median(times[f"losses of {method}"]),
    }


def autocasting(options: argparse.Namespace, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Makes the context in which everything is computed."""
    return lambda: torch.autocast(device.type, torch.bfloat16) if options.bf16 else nullcontext()


def plain_loss(student: VisionModel, images: Tensor, target: Tensor, autocast: Callable[[], Any]) -> Tensor:
    with autocast():
        return F.cross_entropy(student(images).logits.float(), target)


def plain_step(
    student: VisionModel, pair: Pair, images: Tensor, target: Tensor, autocast: Callable[[], Any], compiled: bool
) -> Job:
    """A step of ordinary training, written without the Distiller."""
    optimizer = make_optimizer(student.parameters(), pair.optimizer)
    loss = torch.compile(plain_loss, dynamic=False) if compiled else plain_loss

    def step() -> None:
        optimizer.zero_grad()
        loss(student, images, target, autocast).backward()
        optimizer.step()

    return step


def teacher_pass(teacher: VisionModel, images: Tensor, autocast: Callable[[], Any], compiled: bool) -> Job:
    forward = torch.compile(teacher, dynamic=False) if compiled else teacher

    def run() -> None:
        with torch.no_grad(), autocast():
            forward(images, Request())

    return run


def whole_step(
    distiller: Distillation[Any],
    optimizer_name: str,
    inputs: Any,
    target: Any,
    autocast: Callable[[], Any],
    *,
    compiled: bool = False,
    beside: Job | None = None,
) -> Job:
    """A distillation step; `beside` is run with it."""
    optimizer = make_optimizer((p for _, p in distiller.trained_parameters()), optimizer_name)
    numbers = torch.arange(len(target), device=distiller.loss_weights.device)
    if compiled:
        distiller.compile()

    def step() -> None:
        if beside is not None:
            beside()
        optimizer.zero_grad()
        with autocast():
            total = distiller(inputs, target, numbers)["total"]
        total.backward()
        optimizer.step()

    return step


def bare_loss(distiller: Distiller, images: Tensor, target: Tensor, autocast: Callable[[], Any]) -> Job:
    """The losses' forward and backward passes between maps that are there already."""
    with torch.no_grad(), autocast():
        # Of a teacher that sees only some patches too, since its answers have the same shapes.
        taught = distiller.teacher(images, distiller.teacher_request) if distiller.teacher is not None else None
        said: Outputs = distiller.student(images, distiller.student_request)
    said.numbers = torch.arange(len(target), device=target.device)
    answers = (said.logits, said.pooled, said.final, said.class_logits, said.distilled_logits)
    tensors = [tensor for tensor in (*answers, *said.maps.values(), *said.class_tokens.values()) if tensor is not None]
    for tensor in tensors:
        tensor.requires_grad_()

    def run() -> None:
        if not distiller.losses:
            return
        with autocast():
            torch.stack([loss(said, taught, target) for loss in distiller.losses]).sum().backward()
        # Fresh gradients as in a step, not sums with those of the last call.
        for tensor in (*tensors, *distiller.losses.parameters()):
            tensor.grad = None

    return run


def make_optimizer(parameters: Iterator[nn.Parameter], name: str) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, weight_decay=5e-4)
    return torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.05)


def size_of(parameters: Iterator[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def count(run: Job) -> int:
    """Multiply-adds of the matrix products and convolutions of a call."""
    # Fused attention has no count on every device; its plain form is the same arithmetic.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


class Recorder(TorchDispatchMode):
    """Every matrix product and convolution that is run, with a maker of arguments of the same shapes and strides."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket in flop_registry:
            self.calls.append((func, *tree_map(_alike, (args, kwargs or {}))))
        return func(*args, **(kwargs or {}))


def _alike(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.numel() == 0:
        return torch.empty_like(value)
    extent = 1 + sum((n - 1) * stride for n, stride in zip(value.shape, value.stride(), strict=True))
    flat = torch.rand(extent, device=value.device).to(value.dtype)
    return flat.as_strided(value.shape, value.stride())


def operators(loss: Job, projectors: nn.Module, optimizer_name: str) -> Job:
    """The method's matrix products and convolutions one after another, and the update of its projectors."""
    with sdpa_kernel(SDPBackend.MATH), Recorder() as recorder:
        loss()
    projectors = copy.deepcopy(projectors)
    parameters = list(projectors.parameters())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer = make_optimizer(iter(parameters), optimizer_name) if parameters else None

    def run() -> None:
        with torch.no_grad():
            for func, args, kwargs in recorder.calls:
                func(*args, **kwargs)
        if optimizer is not None:
            optimizer.step()

    return run


def take_turns(jobs: dict[str, Job], options: argparse.Namespace, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every job in every round that counts."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    order = random.Random(0)
    names = list(jobs)
    clock = time.process_time if options.cpu_time else time.perf_counter
    for turn in range(options.warmups + options.repeats):
        order.shuffle(names)
        gc.collect()
        gc.disable()
        for name in names:
            seconds = timed(jobs[name], clock, device)
            if turn >= options.warmups:
                times[name].append(seconds)
        gc.enable()
    return times


def timed(job: Job, clock: Callable[[], float], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = clock()
    job()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - began


def over(times: list[float], base: list[float]) -> float:
    """Median of the rounds' ratios: both sides of each were measured within one round, so slow drifts cancel."""
    return statistics.median(t / b for t, b in zip(times, base, strict=True))


def quartiles(times: list[float], base: list[float]) -> list[float]:
    first, _, third = statistics.quantiles([t / b for t, b in zip(times, base, strict=True)], n=4, method="inclusive")
    return [first, third]


def peak_memory(job: Job, device: torch.device) -> int:
    """The most bytes that a call holds at once beyond what was held before it."""
    job()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        job()
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


# Text


def markdown(results: dict[str, Any]) -> str:
    lines = heading("Cost of a step", results)
    for pair in results["pairs"].values():
        lines += [
            "",
            f"## {pair['teacher']} to {pair['student']}, {pair['side']} px, batch {pair['batch']}, {pair['optimizer']}",
            "",
            f"Plain student step {pair['student_ms']:.1f} ms, teacher pass {pair['teacher_ms']:.1f} ms, together "
            f"{pair['multiply_adds'] / 1e9:.3f} G multiply-adds. All ratios are over these two together.",
            "",
            "| method | measured (quartiles) | predicted by multiply-adds | own operators timed alone | losses timed alone "
            "| measured / predicted | measured / operators | memory |",
            "|---|---|---|---|---|---|---|---|",
        ]
        plain = pair["methods"]["none"]["memory_bytes"] if "none" in pair["methods"] else None
        for method, row in pair["methods"].items():
            low, high = row["measured_quartiles"]
            ratio = f" ({row['memory_bytes'] / plain:.2f})" if plain else ""
            lines.append(
                f"| {method} | {row['measured']:.3f} ({low:.3f} to {high:.3f}) | {row['predicted']:.3f} | {row['operators']:.3f} "
                f"| {row['losses']:.3f} | {row['measured'] / row['predicted']:.3f} | {row['measured'] / row['operators']:.3f} "
                f"| {row['memory_bytes'] / 2**20:.1f} MiB{ratio} |"
            )
        lines += [f"\n{method}: {reason}" for method, reason in pair["refused"].items()]
    return "\n".join(lines) + "\n"


def heading(title: str, results: dict[str, Any]) -> list[str]:
    """The title, the command, and where it was run."""
    made = results["environment"]
    names = ("limbeck", "torch", "torchvision", "timm", "transformers", "python")
    libraries = [f"{name} {made[name]}" for name in names if name in made]
    allocator = [f"{name}={value}" for name, value in results["allocator"].items()]
    return [
        f"# {title}",
        "",
        f"`{results['command']}`",
        "",
        ", ".join([made["device"], made["platform"], *libraries, *allocator, f"commit {made['git_commit']}"]),
    ]


if __name__ == "__main__":
    main()
