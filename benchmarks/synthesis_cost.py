"""Seconds and memory that each way of making images costs, side by side in one run.

    python benchmarks/synthesis_cost.py --out benchmarks/results/synthesis_cost_cpu

The teachers have random weights, on which the cost does not depend. Inversions are timed with a stated number of
iterations, in rounds in which every way has its turn; a published number of iterations costs proportionally more. What the
sparse ways save is the ratio of `invert(sparse='none')` with the same terms, and of the same preset fed with all patches, to
theirs. Memory is the peak of a process of its own that makes one batch, above that of one that only opens the teacher.
"""

import argparse
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from limbeck.models import load_model
from limbeck.synthesis.base import GrownSynthesis, Setting, StreamedSynthesis
from limbeck.synthesis.build import build_synthesis
from limbeck.synthesis.names import parse_synthesis
from limbeck.verbs.provenance import environment

# Terms that all four share, so that they differ in the patches they feed alone.
SAME = "heads=0, diversity=0, color_shift=0, channel_offset=0"
WAYS = {
    "vit": [
        f"invert(iterations=I, sparse=none_, {SAME})",
        f"invert(iterations=I, sparse=smi, {SAME})",
        f"invert(iterations=I, sparse=pri, {SAME})",
        "smi(iterations=I)",
        "pri(iterations=I)",
        "invert(iterations=I)",
        "mimiq(iterations=I)",
        "psaq(iterations=I)",
        "psaq(iterations=I, density=gaussian)",
        "plugin(iterations=I)",
    ],
    "cnn": ["deepinversion(iterations=I)", "invert(iterations=I)", "fast", "cmi(g_steps=I)", "nayer", "dafl", "noise"],
}
TEACHERS = {"vit": "deit_tiny_patch16_224", "cnn": "limbeck:resnet20"}
SIDES = {"vit": 224, "cnn": 32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="without suffix; .json and .md are written")
    parser.add_argument("--pairs", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, help="instead of each teacher's own")
    parser.add_argument("--teacher", help="instead of the list's")
    parser.add_argument("--ways", nargs="+", help="instead of the list's")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of is not None:
        print(peak_memory(options, options.pairs[0], options.memory_of))
        return
    record: dict[str, Any] = {
        "command": shlex.join(["python", *sys.argv]),
        "environment": environment(torch.device("cpu")) | {"threads": options.threads, "machine": platform.processor()},
        "iterations": options.iterations,
        "batch_size": options.batch_size,
        "teachers": {kind: measure(options, kind) for kind in options.pairs},
    }
    options.out.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    options.out.with_suffix(".md").write_text(page(record))
    print(page(record))


def measure(options: argparse.Namespace, kind: str) -> dict[str, Any]:
    """Seconds an image of each way, its rounds taking turns, and memory."""
    ways = [text.replace("none_", "'none'") for text in options.ways or WAYS[kind]]
    setting = make_setting(options, kind)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(options.rounds):
        for way in ways:
            began = time.process_time()
            images = one_batch(way, setting, options.iterations, number)
            seconds[way].append((time.process_time() - began) / images)
    idle = memory(options, kind, "")
    return {
        "teacher": setting.teacher.facts.name,
        "size": list(setting.size),
        "ways": {
            way: {
                "seconds_per_image": statistics.median(found),
                "all_seconds": found,
                "peak_mib": memory(options, kind, way) - idle,
            }
            for way, found in seconds.items()
        },
    }


def make_setting(options: argparse.Namespace, kind: str) -> Setting:
    """A teacher with random weights, at its own or the given size."""
    torch.manual_seed(0)
    side = options.size or SIDES[kind]
    teacher = load_model(options.teacher or TEACHERS[kind], num_classes=10, pretrained=False, input_size=(side, side))
    return Setting(teacher, (side, side), batch_size=options.batch_size)


def one_batch(way: str, setting: Setting, iterations: int, number: int) -> int:
    """Make one batch; how many images it has. Of a streamed way, one update of the generator and one draw."""
    made = build_synthesis(parse_synthesis(way.replace("=I", f"={iterations}"))[0], setting)
    if isinstance(made, StreamedSynthesis):
        made.learn(None)
        return len(made.draw(setting.batch_size))
    if isinstance(made, GrownSynthesis):
        return len(made.grow(None, number))
    return sum(len(batch) for batch in made.make(setting.batch_size))


def memory(options: argparse.Namespace, kind: str, way: str) -> float:
    """Peak of a process that makes one batch in a few iterations (the peak is that of one), MiB."""
    command = [sys.executable, __file__, "--out", "unused", "--pairs", kind, "--memory_of", way, "--iterations", "4"]
    command += ["--batch_size", str(options.batch_size), "--threads", str(options.threads)]
    for name in ("size", "teacher"):
        if getattr(options, name) is not None:
            command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    return float(done.stdout.split()[-1])


def peak_memory(options: argparse.Namespace, kind: str, way: str) -> float:
    """This process's peak after one batch, MiB; of no way, after the teacher's forward pass alone."""
    setting = make_setting(options, kind)
    with torch.no_grad():
        setting.teacher(torch.zeros(1, 3, *setting.size))
    if way:
        one_batch(way, setting, options.iterations, 0)
    status = Path("/proc/self/status")
    if status.is_file():
        # What getrusage says on Linux includes the peak of the process that started this one.
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2  # macOS counts in bytes


def page(record: dict[str, Any]) -> str:
    """The record as Markdown, each way also as a ratio to the first."""
    lines = [
        f"{record['iterations']} iterations, {record['batch_size']} images together, "
        f"{record['environment']['threads']} thread(s); CPU seconds.",
        "",
    ]
    for found in record["teachers"].values():
        first = next(iter(found["ways"].values()))["seconds_per_image"]
        lines += [
            f"**{found['teacher']}**, {found['size'][0]} pixels",
            "",
            "| way | seconds an image | of the first's | peak memory, MiB |",
            "|---|---|---|---|",
        ]
        for way, cost in found["ways"].items():
            text = way.replace("=I", f"={record['iterations']}")
            seconds = cost["seconds_per_image"]
            lines.append(f"| `{text}` | {seconds:.3g} | {seconds / first:.2f} | {cost['peak_mib']:.0f} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
