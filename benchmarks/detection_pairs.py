"""Detectors distilled on a stated budget: a teacher, then students without and with distillation over several seeds.

    python benchmarks/detection_pairs.py --pair faster_rcnn --data coco:ANNOTATIONS.json,IMAGES --out runs/detection
    python benchmarks/detection_pairs.py --table --out runs/detection

Everything is trained from random numbers, or from `--teacher_backbone` and `--student_backbone` (folders of classifiers' runs).
Cells that are finished are not run again, and a killed one is resumed. One process makes one pair; several may share the
folder. `--table` gathers all results.json there into one table.
"""

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import limbeck
from limbeck.run import Run
from limbeck.verbs.provenance import environment


@dataclass(frozen=True)
class Pair:
    """Two networks, and the methods that suit them.

    Attributes:
        teacher: its name; pairs with the same teacher share its run.
        teacher_folder: of that run.
        student: its name.
        methods: without distillation first.
        lr: peak learning rate of both.
    """

    teacher: str
    teacher_folder: str
    student: str
    methods: tuple[str, ...]
    lr: float


HEADS = "fpn_channels=64, head_channels=256, proposals=[300, 100], train_regions=64"
MASK_TEACHER = f"torchvision:mask_rcnn(backbone=resnet18, {HEADS}, mask_channels=64)"
YOLOS = "image_size=[256, 384], num_detection_tokens=20, use_mid_position_embeddings=False"
PAIRS = {
    "mask_rcnn": Pair(
        MASK_TEACHER,
        "teacher_mask_rcnn",
        f"torchvision:mask_rcnn(backbone='timm:mobilenetv2_050', {HEADS}, mask_channels=64)",
        ("none", "pkd", "reviewkd+roi_kd"),
        3e-4,
    ),
    "faster_rcnn": Pair(
        MASK_TEACHER,
        "teacher_mask_rcnn",
        f"torchvision:faster_rcnn(backbone='timm:mobilenetv2_050', {HEADS})",
        ("none", "pkd", "reviewkd"),
        3e-4,
    ),
    "yolos": Pair(
        f"hf:yolos(hidden_size=128, num_hidden_layers=6, num_attention_heads=4, intermediate_size=512, {YOLOS})",
        "teacher_yolos",
        f"hf:yolos(hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256, {YOLOS})",
        ("none", "query_kd", "vitkd+query_kd"),
        5e-4,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--table", action="store_true", help="gather what is there into one table")
    parser.add_argument("--pair", choices=tuple(PAIRS))
    parser.add_argument("--data", help="scenes, such as coco:ANNOTATIONS.json,IMAGES")
    parser.add_argument("--methods", nargs="*", help="instead of the pair's own")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--teacher_epochs", type=int, default=60)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--short_side", type=int, default=256)
    parser.add_argument("--long_side", type=int, default=384)
    parser.add_argument("--val_fraction", type=float, default=0.3)
    parser.add_argument("--teacher_backbone", help="a classifier's run to start the teacher from")
    parser.add_argument("--student_backbone", help="the same for the students")
    options = parser.parse_args()
    if options.table:
        print(table(options.out))
        return
    if not (options.pair and options.data):
        parser.error("--pair and --data are needed.")
    run_pair(options, PAIRS[options.pair], options.out / options.pair)


def run_pair(options: argparse.Namespace, pair: Pair, folder: Path) -> None:
    """Make all cells of a pair, writing the results after each."""
    common = {
        "task": "detection",
        "data": options.data,
        "val_fraction": options.val_fraction,
        "batch_size": options.batch_size,
        "short_side": options.short_side,
        "long_side": options.long_side,
        "scale_jitter": (0.8, 1.25),
        "lr": pair.lr,
        "clip_grad": 5.0,
        "num_workers": 0,
        "progress": False,
        "loggers": [],
    }
    teacher = cell(
        options.out / pair.teacher_folder,
        limbeck.train,
        common
        | {
            "model": pair.teacher,
            "backbone": options.teacher_backbone,
            "epochs": options.teacher_epochs,
            "eval_every": max(1, options.teacher_epochs // 5),
        },
    )
    results: dict[str, Any] = {
        "command": shlex.join(["python", *sys.argv]),
        "environment": environment(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "budget": {"epochs": options.epochs, "teacher_epochs": options.teacher_epochs},
        "teacher": {"name": pair.teacher, "scores": teacher.summary["scores"]["student"], **sizes(teacher)},
        "student": {"name": pair.student},
        "methods": {},
    }
    for method in options.methods or pair.methods:
        runs = []
        for seed in range(options.seeds):
            run = cell(
                folder / f"{method.replace('(', '_').replace(')', '')}_{seed}",
                limbeck.distill,
                common
                | {
                    "teacher": str(teacher.path),
                    "student": pair.student,
                    "backbone": options.student_backbone,
                    "method": method,
                    "seed": seed,
                    "epochs": options.epochs,
                    "eval_every": max(1, options.epochs // 2),
                    "trust_teacher": True,
                },
            )
            runs.append(run)
            results["student"] |= sizes(run)
            results["methods"][method] = [
                {"scores": run.summary["scores"]["student"], "training_seconds": run.summary["training_seconds"]}
                for run in runs
            ]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")


def cell(out: Path, verb: Callable[..., Run], values: dict[str, Any]) -> Run:
    """The finished run in a folder: found, resumed or made."""
    run = Run(out)
    return run if run.summary else verb(**values, out=str(out), resume=run.last_checkpoint.is_file())


def sizes(run: Run) -> dict[str, Any]:
    """Parameters and multiply-adds of a run's student."""
    return {"parameters": run.summary["parameters"]["student"], "macs": run.summary["macs"]["student"]}


def table(folder: Path) -> str:
    """All pairs' results as Markdown: AP in per cent, mean and standard deviation over the seeds."""
    lines = []
    for file in sorted(folder.glob("*/results.json")):
        results = json.loads(file.read_text())
        kinds = list(next(iter(results["methods"].values()))[0]["scores"])
        names = {"bbox": "box", "segm": "mask"}
        columns = [(kind, score) for kind in kinds for score in ("ap", "ap50")]
        lines += [
            f"**{file.parent.name}** ({results['teacher']['parameters'] / 1e6:.1f} M parameters to "
            f"{results['student']['parameters'] / 1e6:.1f} M)",
            "",
            "| method | " + " | ".join(f"{names[kind]} {score.upper()}" for kind, score in columns) + " | training |",
            "|---" * (len(columns) + 2) + "|",
        ]
        teacher = results["teacher"]["scores"]
        cells = " | ".join(f"{100 * (teacher[kind][score] or 0):.1f}" for kind, score in columns)
        lines.append(f"| teacher | {cells} | |")
        for method, runs in results["methods"].items():
            cells = " | ".join(_spread([run["scores"][kind][score] or 0.0 for run in runs]) for kind, score in columns)
            seconds = statistics.mean(run["training_seconds"] for run in runs)
            lines.append(f"| `{method}` | {cells} | {seconds:.0f} s |")
        lines.append("")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    each = ", ".join(f"{100 * value:.1f}" for value in values)
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation} ({each})"


if __name__ == "__main__":
    main()
