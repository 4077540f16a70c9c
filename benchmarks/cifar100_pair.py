"""A pair of the CIFAR-100 tables: teacher, then students without and with distillation over several seeds.

The published recipe (240 epochs, SGD, steps) on a GPU:

    python benchmarks/cifar100_pair.py --data cifar100.npz --out runs/cifar100

A small budget for a CPU; its numbers say nothing about the published ones and are labelled with what was spent:

    python benchmarks/cifar100_pair.py --data cifar100.npz --out runs/cifar100_small \\
        --images 10000 --epochs 8 --teacher_epochs 12 --cosine --seeds 2

Cells that are finished are not run again, a killed one is resumed. Results are written to OUT/results.json.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import yaml

import limbeck
from limbeck.run import Run
from limbeck.verbs.provenance import environment

RECIPES = Path(__file__).parents[1] / "recipes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="cifar100.npz")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--teacher", default="limbeck:resnet56")
    parser.add_argument("--student", default="limbeck:resnet20")
    parser.add_argument("--methods", default="none,kd(temperature=4.0),reviewkd(weight=0.6)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=240)
    parser.add_argument("--teacher_epochs", type=int, default=240)
    parser.add_argument("--images", type=int, default=None, help="train on so many images only")
    parser.add_argument(
        "--cosine", action="store_true", help="cosine schedule with one epoch of warm-up, for small budgets"
    )
    parser.add_argument("--review_warmup", type=float, default=None, help="warm-up epochs of reviewkd; published: 20")
    options = parser.parse_args()

    common = {
        "data": options.data,
        "max_train_images": options.images,
        "progress": False,
        "loggers": [],
        "report": False,
    }
    teacher = cell(
        options.out / "teacher",
        limbeck.train,
        settings(options, options.teacher_epochs) | common | {"model": options.teacher},
    )
    results: dict[str, Any] = {"command": " ".join(sys.argv), "teacher": teacher.accuracy, "methods": {}}
    results |= {
        "budget": {
            "images": options.images or "all",
            "epochs": options.epochs,
            "teacher_epochs": options.teacher_epochs,
        }
    }
    results["environment"] = environment(main_device())
    for method in options.methods.split(","):
        text = method
        if method.startswith("reviewkd("):
            warmup = 20.0 * options.epochs / 240 if options.review_warmup is None else options.review_warmup
            text = method.replace(")", f", warmup_epochs={warmup:g})")
        runs = [
            cell(
                options.out / f"{method.partition('(')[0]}_{seed}",
                limbeck.distill,
                settings(options, options.epochs)
                | common
                | {"teacher": str(teacher.path), "student": options.student, "method": text, "seed": seed},
            )
            for seed in range(options.seeds)
        ]
        last = [run.accuracy for run in runs]
        results["methods"][text] = {
            "last": last,
            "mean": statistics.mean(last),
            "std": statistics.stdev(last) if len(last) > 1 else None,
            "best": [run.summary["accuracy"]["best"] for run in runs],
            "agreement": [run.summary["agreement"] for run in runs],
            "training_seconds": [run.summary["training_seconds"] for run in runs],
        }
        (options.out / "results.json").write_text(json.dumps(results, indent=2))
        print(f"{text}: {100 * statistics.mean(last):.2f} % over {len(last)} seeds", flush=True)


def settings(options: argparse.Namespace, epochs: int) -> dict[str, Any]:
    """The published recipe, its steps scaled to the epochs; or a cosine for small budgets."""
    recipe: dict[str, Any] = yaml.safe_load((RECIPES / "cifar100_train.yaml").read_text())
    recipe["step_epochs"] = [epoch * epochs / recipe["epochs"] for epoch in recipe["step_epochs"]]
    recipe["epochs"] = epochs
    return recipe | ({"schedule": "cosine", "warmup_epochs": 1.0} if options.cosine else {})


def cell(out: Path, verb: Any, values: dict[str, Any]) -> Run:
    """The finished run in a folder: found, resumed or made."""
    run = Run(out)
    if run.summary:
        return run
    finished: Run = verb(**values, out=str(out), resume=run.last_checkpoint.is_file())
    return finished


def main_device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    main()
