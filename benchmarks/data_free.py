"""What a student learns without data: every way of making images, with controls, on one budget of updates.

    python benchmarks/data_free.py train --out runs/data_free/cifar_vit --pair vit --data cifar100.npz --classes 10
    python benchmarks/data_free.py table --out runs/data_free

In a folder all cells share teacher, student, recipe and number of updates, and are measured on the real test images, which
nothing else reads. The controls are the student trained on the real training images alone and with kd. Images that are made
before training are made once and learned from with every seed; ways that go on during training start anew with each seed.
The pool is the data set's other classes, unlabelled, or `--pool`.

`train` may be started several times on one folder, for instance once per core (see cells.py).
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import Cell, claim, command, slug, work
from PIL import Image

import limbeck
from limbeck.files import atomic_write
from limbeck.run import Run
from limbeck.synthesis.names import SYNTHESES, parse_synthesis
from limbeck.verbs.provenance import environment

VIT = "vit_tiny_patch16_224(patch_size=4, embed_dim={}, depth=4, num_heads=3)"
PAIRS = {
    "vit": {"teacher": VIT.format(96), "student": VIT.format(48), "lr": 1e-3},
    "cnn": {"teacher": "limbeck:resnet20", "student": "limbeck:resnet8", "lr": 2e-3},
}
CONTROLS = ("real", "real+kd")
# In each pair's order the cheap ones first.
SHARED = ["noise", "fractals", "dead_leaves", "one_image", "pool", "invert"]
WAYS = {
    "vit": [*SHARED, "pri", "mimiq", "plugin", "dafl", "attention_generator", "invert+pool"],
    "cnn": [*SHARED, "deepinversion", "fast", "cmi", "nayer", "dafl", "zskt", "dfad"],
}
# What the published settings are cut down to on a CPU's budget, with --small_generators.
SMALL = {
    "fast": {"g_steps": 5, "warmup_rounds": 5},
    "cmi": {"g_steps": 40},
    "nayer": {"g_steps": 10},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    cells = parts.add_parser("train", help="every way and seed")
    cells.add_argument("--out", required=True, type=Path)
    cells.add_argument("--pair", required=True, choices=tuple(PAIRS))
    cells.add_argument("--data", required=True, type=Path, help="an .npz file such as mnist.npz or cifar100.npz")
    cells.add_argument("--classes", type=int, default=10, help="the first so many; the others are the pool")
    cells.add_argument("--pool", help="an .npz file or folder of unrelated images; default: the data's other classes")
    cells.add_argument("--image", help="the photograph of one_image")
    cells.add_argument("--teacher", help="a finished run; default: trained here")
    cells.add_argument("--teacher_epochs", type=int, default=40)
    cells.add_argument("--ways", nargs="+", help="instead of the pair's list; with options in parentheses as usual")
    cells.add_argument(
        "--statistics", default="none", help="the teacher's token moments, for ways that use them; cells named apart"
    )
    cells.add_argument("--methods", nargs="+", default=["kd"], help="how the student learns from the images")
    cells.add_argument("--count", type=int, default=1000, help="images that are made before training")
    cells.add_argument(
        "--iterations", type=int, default=200, help="of inversions and cmi; 0 leaves the published numbers"
    )
    cells.add_argument(
        "--small_generators", action="store_true", help="half the channels and fewer steps than published"
    )
    cells.add_argument("--updates", type=int, default=1500)
    cells.add_argument("--batch_size", type=int, default=64)
    cells.add_argument(
        "--epochs", type=int, default=25, help="that the updates are divided into for ways during training"
    )
    cells.add_argument("--cutmix", type=float, default=0.0)
    cells.add_argument("--seeds", type=int, default=2)
    cells.add_argument("--threads", type=int, default=1)
    pages = parts.add_parser("table", help="gather the finished cells of all folders in OUT")
    pages.add_argument("--out", required=True, type=Path)
    pages.add_argument("--to", type=Path, help="also write TO.json and TO.md")
    options = parser.parse_args()
    if options.part == "table":
        table(options.out, options.to)
        return
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    options.out.mkdir(parents=True, exist_ok=True)
    train(options)


def train(options: argparse.Namespace) -> None:
    """Finish every cell, together with whoever else works on this folder."""
    with claim(options.out / "plan.lock", wait=True):
        data = subset(options)
        plan = {"command": command(), "pair": options.pair, "data": options.data.name, "classes": options.classes}
        plan |= {"updates": options.updates, "batch_size": options.batch_size, "count": options.count}
        plan |= {"environment": environment(torch.device("cuda" if torch.cuda.is_available() else "cpu"))}
        if not (options.out / "plan.json").is_file():
            (options.out / "plan.json").write_text(json.dumps(plan, indent=2) + "\n")
    pair = PAIRS[options.pair]
    side = size(data)
    teacher = Path(options.teacher) if options.teacher else options.out / "teacher"
    cells = [
        Cell(
            teacher,
            limbeck.train,
            recipe(options, data, options.teacher_epochs)
            | {"model": pair["teacher"], "input_size": side, "data": str(data)},
            essential=True,
        )
    ]
    cells += [
        real(options, data, control, seed, teacher)
        for seed in range(options.seeds)
        for control in CONTROLS
        if options.ways is None or control in options.ways
    ]
    for seed in range(options.seeds):
        for way in options.ways or WAYS[options.pair]:
            if way not in CONTROLS:
                for method in options.methods:
                    cells += [cell for cell in made(options, data, way, method, seed, teacher) if cell not in cells]
    work(cells)


def real(options: argparse.Namespace, data: Path, control: str, seed: int, teacher: Path) -> Cell:
    """The student on real images, alone or with kd; as many as the updates pass over, in whole epochs."""
    with np.load(data) as arrays:
        available = len(arrays["train_y"])
    budget = options.updates * options.batch_size
    epochs = -(-budget // available)
    values = recipe(options, data, epochs) | {"data": str(data), "seed": seed, "max_train_images": budget // epochs}
    folder = options.out / "cells" / f"{slug(control)}_{seed}"
    student, side = PAIRS[options.pair]["student"], size(data)
    if control == "real":
        return Cell(folder, limbeck.train, values | {"model": student, "input_size": side})
    values |= {"teacher": str(teacher), "student": student, "student_size": side, "method": "kd"}
    return Cell(folder, limbeck.distill, values, needs=(teacher,))


def made(options: argparse.Namespace, data: Path, way: str, method: str, seed: int, teacher: Path) -> list[Cell]:
    """The cells of one way: the images, where they are made before training, and the student."""
    text = with_options(options, way)
    budget = options.updates * options.batch_size
    name = slug(way) + ("_statistics" if options.statistics != "none" else "") + ("_cutmix" if options.cutmix else "")
    name += "" if method == "kd" else f"_{slug(method)}"
    folder = options.out / "cells" / f"{name}_{seed}"
    values = {
        "teacher": str(teacher),
        "student": PAIRS[options.pair]["student"],
        "student_size": size(data),
        "method": method,
        "val_data": str(data),
        "cutmix": options.cutmix,
        "seed": seed,
    }
    online = any(spec.moment == "during" or ".generators." in spec.path for spec in parse_synthesis(text))
    if online or "adi" in way:
        values |= {"data": "none", "synthesis": text, "synthetic_images": budget // options.epochs}
        values |= {"synthesis_batch_size": options.batch_size, "statistics": options.statistics}
        return [Cell(folder, limbeck.distill, recipe(options, data, options.epochs) | values, needs=(teacher,))]
    images = options.out / "images" / (slug(way) + ("_statistics" if options.statistics != "none" else ""))
    values |= {"data": str(images)}
    making = {"teacher": str(teacher), "method": text, "count": options.count, "batch_size": 100}
    making |= {"statistics": options.statistics}
    return [
        Cell(images, limbeck.synthesize, making, needs=(teacher,)),
        Cell(folder, limbeck.distill, recipe(options, data, budget // options.count) | values, needs=(teacher, images)),
    ]


def with_options(options: argparse.Namespace, way: str) -> str:
    """The text of a way, with this benchmark's files and iterations where it needs them and none are written."""
    parts = []
    for spec in parse_synthesis(way):
        known = dict(spec.options)
        needs = SYNTHESES[spec.name].needs
        if needs == "image=FILE":
            known.setdefault("image", options.image)
        if needs == "images=FOLDER":
            known.setdefault("images", options.pool or str(options.out / "pool"))
        if options.iterations and (".inversion." in spec.path):
            known.setdefault("iterations", options.iterations)
        if options.small_generators and ".generators." in spec.path:
            for name, value in {"channels": 32, **SMALL.get(spec.name, {})}.items():
                known.setdefault(name, value)
        if spec.share != 1:
            known["share"] = spec.share
        parts.append(
            f"{spec.name}({', '.join(f'{name}={value!r}' for name, value in known.items())})" if known else spec.name
        )
    return "+".join(parts)


def recipe(options: argparse.Namespace, data: Path, epochs: int) -> dict[str, Any]:
    """What all trainings share."""
    return {
        "epochs": epochs,
        "batch_size": options.batch_size,
        "lr": PAIRS[options.pair]["lr"],
        "crop": "pad",
        "eval_crop": 1.0,
        "view_size": size(data),
        "flip": 0.0 if "mnist" in options.data.name else 0.5,
        "eval_every": epochs,
        "num_workers": 0,
        "loggers": [],
        "report": False,
        "progress": False,
    }


def size(data: Path) -> int:
    """Side of the images in pixels."""
    with np.load(data) as arrays:
        return int(arrays["test_x"].shape[1])


def subset(options: argparse.Namespace) -> Path:
    """The file of the first classes; the others' training images become the pool. Written once."""
    path: Path = options.out / "data.npz"
    if path.is_file():
        return path
    with np.load(options.data, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    chosen = {}
    for part in ("train", "test"):
        kept = arrays[f"{part}_y"] < options.classes
        chosen |= {f"{part}_{axis}": arrays[f"{part}_{axis}"][kept] for axis in "xy"}
    if "class_names" in arrays:
        chosen["class_names"] = arrays["class_names"][: options.classes]
    others = arrays["train_x"][arrays["train_y"] >= options.classes]
    if len(others) and not options.pool:
        folder = options.out / "pool"
        folder.mkdir()
        for number in np.random.default_rng(0).permutation(len(others))[:10_000]:
            Image.fromarray(others[number]).save(folder / f"{number:05d}.png")
    with atomic_write(path) as file:
        np.savez(file, **chosen)
    return path


def table(folder: Path, to: Path | None) -> None:
    """All folders' results as Markdown: accuracy in per cent, mean and standard deviation over the seeds."""
    lines, record = [], {}
    for plan_file in sorted(folder.glob("*/plan.json")):
        plan, results = json.loads(plan_file.read_text()), gather(plan_file.parent)
        if not results:
            continue
        record[plan_file.parent.name] = {"plan": plan, "results": results}
        teacher = next(run["teacher_accuracy"] for runs in results.values() for run in runs if run["teacher_accuracy"])
        lines += [
            f"**{plan_file.parent.name}**: teacher {100 * teacher:.1f} %, {plan['updates']} updates of "
            f"{plan['batch_size']} images",
            "",
            "| images | accuracy | agreement with the teacher |",
            "|---|---|---|",
        ]
        for way, runs in results.items():
            agreement = [run["agreement"] for run in runs if run["agreement"] is not None]
            lines.append(
                f"| {way} | {_spread([run['accuracy'] for run in runs])} | {_spread(agreement) if agreement else ''} |"
            )
        lines.append("")
    text = "\n".join(lines)
    print(text)
    if to is not None:
        to.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
        to.with_suffix(".md").write_text(text)


def gather(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The finished cells of one folder by way, the controls first, then as they rank."""
    found: dict[str, list[dict[str, Any]]] = {}
    for cell in sorted((folder / "cells").glob("*_[0-9]*")):
        run = Run(cell)
        if cell.is_dir() and run.summary:
            name = "real+kd" if cell.name.startswith("real_kd") else cell.name.rpartition("_")[0]
            summary = run.summary
            found.setdefault(name, []).append(
                {
                    "accuracy": run.accuracy,
                    "agreement": summary["agreement"],
                    "teacher_accuracy": summary["teacher_accuracy"],
                    "seconds": summary["seconds"],
                    "synthesis": run.recipe.get("synthesis") or run.recipe.get("data"),
                }
            )
    order = sorted(found, key=lambda name: (name not in CONTROLS, -statistics.mean(r["accuracy"] for r in found[name])))
    return {name: found[name] for name in order}


def _spread(values: list[float]) -> str:
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


if __name__ == "__main__":
    main()
