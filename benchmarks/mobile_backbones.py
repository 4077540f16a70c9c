"""Mobile backbones under one recipe: what each costs, what it learns alone and from a teacher; one table, one plot.

    python benchmarks/mobile_backbones.py facts --out runs/mobile
    python benchmarks/mobile_backbones.py train --out runs/mobile --data cifar100.npz
    python benchmarks/mobile_backbones.py table --out runs/mobile --to benchmarks/results/mobile_backbones_cpu

All networks start at random, read the same images at the same input side and are trained with the same optimiser,
rates and epochs, none of which was tuned for one of them. The budget is small: the numbers compare the networks at that
budget and say nothing about the published ones.

`train` may be started several times on one folder, for instance once per core: a cell (network, method, seed) is claimed
by a lock on a file that the operating system lets go of when its process dies, so that a killed cell is taken over, and
resumed from its last epoch, by whoever comes next. Finished cells are found again. Seeds are the outer loop: a run that
is stopped early has the same number of seeds for nearly all networks. On Linux, keeping freed memory saves up to a third
of the time, since fresh pages are dear: MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_TOP_PAD_=100000000.

The data are the images of the first --classes labels in label order (alphabetical for CIFAR-100), of each the first
--images_per_class training images in the file's order, and all test images of those labels.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import Cell, claim, command, slug, work
from mobile_backbones_facts import measure_facts
from mobile_backbones_page import Network, write_page

import limbeck
from limbeck.errors import UserError
from limbeck.files import atomic_write
from limbeck.models import load_model
from limbeck.verbs.provenance import environment

SMALL = 32
# Of about equal multiply-adds for a 32-pixel image (15 to 31 million): each network at the input side at which it
# costs that much, in the order of its first listing; narrower variants where a family has no member of the size.
NETWORKS = [
    Network("limbeck:ipe_vit_75m_32", "IPE-ViT 75M", "ours", SMALL),
    Network("limbeck:ipe_vit_plus_75m_32", "IPE-ViT plus 75M", "ours", SMALL),
    Network("limbeck:deit_shrunk_75m_32", "shrunk DeiT 75M", "control", SMALL),
    Network("mobilenetv3_large_100", "MobileNetV3-L", "rival"),
    Network("mobilenetv4_conv_small", "MobileNetV4-S", "rival"),
    Network("mobilevit_xxs", "MobileViT-XXS", "rival"),
    Network("efficientformerv2_s0", "EfficientFormerV2-S0", "rival"),
    Network("efficientvit_b0", "EfficientViT-B0", "rival", 96),
    Network(
        "tiny_vit_5m_224(embed_dims=[24, 48, 96, 192], num_heads=[1, 2, 3, 6], window_sizes=[4, 4, 4, 2])",
        "TinyViT narrow",
        "rival",
    ),
    Network("fastvit_t8(embed_dims=[32, 64, 128, 256])", "FastViT narrow", "rival"),
    Network("starnet_s100", "StarNet-S100", "rival"),
    Network("repvit_m0_9(embed_dim=[32, 64, 128, 256], depth=[2, 2, 10, 2])", "RepViT narrow", "rival"),
]


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    # CPU times of networks whose values decay into denormal numbers would be those of the denormal numbers.
    torch.set_flush_denormal(True)
    options.out.mkdir(parents=True, exist_ok=True)
    {"facts": facts, "train": train, "table": table}[options.part](options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--out", required=True, type=Path, help="the folder that all three parts share")
    shared.add_argument("--threads", type=int, default=1)
    chosen = argparse.ArgumentParser(add_help=False)
    chosen.add_argument(
        "--networks", nargs="+", default=None, help="other models' names; default: the list in this file"
    )
    chosen.add_argument(
        "--size",
        type=int,
        default=64,
        help="side in pixels of the input of a network that has none of its own in this file",
    )
    chosen.add_argument("--classes", type=int, default=10)
    counts = parts.add_parser("facts", parents=[shared, chosen], help="parameters, multiply-adds, activations, latency")
    counts.add_argument("--published_size", type=int, default=224, help="a second side, with 1000 classes")
    counts.add_argument("--runs", type=int, default=50, help="timed runs in each of three rounds")
    cells = parts.add_parser("train", parents=[shared, chosen], help="every network, method and seed")
    cells.add_argument("--data", required=True, type=Path, help="an .npz file such as cifar100.npz")
    cells.add_argument("--images_per_class", type=int, default=500)
    cells.add_argument("--methods", nargs="+", default=["none", "kd(temperature=4.0)"])
    cells.add_argument("--seeds", type=int, default=3)
    cells.add_argument("--epochs", type=int, default=3)
    cells.add_argument("--batch_size", type=int, default=32)
    cells.add_argument("--lr", type=float, default=1e-3)
    cells.add_argument("--weight_decay", type=float, default=0.05)
    cells.add_argument("--warmup_epochs", type=float, default=0.5)
    cells.add_argument("--label_smoothing", type=float, default=0.0)
    cells.add_argument("--clip_grad", type=float, default=1.0)
    cells.add_argument("--teacher", default="limbeck:resnet20")
    cells.add_argument("--teacher_size", type=int, default=None, help="default: the images' own")
    cells.add_argument("--teacher_epochs", type=int, default=10)
    cells.add_argument("--teacher_lr", type=float, default=2e-3)
    pages = parts.add_parser("table", parents=[shared], help="write TO.json, TO.md and TO.png from what is finished")
    pages.add_argument("--to", required=True, type=Path, help="without suffix")
    return parser.parse_args()


# Facts


def facts(options: argparse.Namespace) -> None:
    """Measure every network once at both sizes; those measured before are kept."""
    published = {options.published_size: 1000}
    record = {"command": command(), "environment": environment(torch.device("cpu")), "size": options.size}
    _write(options.out / "facts.json", record | {"published_size": options.published_size})
    wanted = [
        # A network for small images has nothing to be compared with at the published size.
        (network.name, {side(options, network): options.classes} | ({} if network.size == SMALL else published))
        for network in opened(options)
    ]
    measure_facts(wanted, folder=options.out / "facts", threads=options.threads, runs=options.runs, stem=slug)


# Cells


def train(options: argparse.Namespace) -> None:
    """Finish every cell, together with whoever else works on this folder."""
    plan = {name: value for name, value in vars(options).items() if name not in PLAN_FREE}
    with claim(options.out / "plan.lock", wait=True):
        _keep_or_compare(options.out / "plan.json", plan | {"data": options.data.name, "command": command()})
        data = subset(options)
    size = {"input_size": options.teacher_size} if options.teacher_size else {}
    teacher = Cell(
        options.out / "cells" / "teacher",
        limbeck.train,
        recipe(options, data)
        | {"epochs": options.teacher_epochs, "lr": options.teacher_lr, "model": options.teacher, **size},
        essential=True,
    )
    networks = opened(options)
    cells = [
        student(options, network, method, seed, data, teacher)
        for seed in range(options.seeds)
        for network in networks
        for method in options.methods
    ]
    work([teacher, *cells] if any(cell.needs for cell in cells) else cells)


PLAN_FREE = ("part", "out", "networks", "methods", "seeds", "threads", "data")
"""What may differ between two calls on one folder without making their cells incomparable."""


def student(options: argparse.Namespace, network: Network, method: str, seed: int, data: Path, teacher: Cell) -> Cell:
    """The cell of one network, method and seed."""
    folder = options.out / "cells" / slug(network.name) / f"{slug(method)}_{seed}"
    values = recipe(options, data) | {"seed": seed}
    if method == "none":
        values |= {"model": network.name, "pretrained": False, "input_size": side(options, network)}
        return Cell(folder, limbeck.train, values)
    values |= {"student": network.name, "student_pretrained": False, "student_size": side(options, network)}
    values |= {"method": method, "teacher": str(teacher.folder)}
    return Cell(folder, limbeck.distill, values, needs=(teacher.folder,))


def side(options: argparse.Namespace, network: Network) -> int:
    """Pixels of the network's input."""
    return int(network.size or options.size)


def recipe(options: argparse.Namespace, data: Path) -> dict[str, Any]:
    """What all cells share. The views have the images' own side: each network resizes them to its input."""
    names = ("epochs", "batch_size", "lr", "weight_decay", "warmup_epochs", "label_smoothing", "clip_grad")
    with np.load(data) as arrays:
        side = min(arrays["test_x"].shape[1:3])
    return {name: getattr(options, name) for name in names} | {
        "data": str(data),
        "view_size": int(side),
        "crop": "pad",
        "eval_crop": 1.0,
        "eval_every": max(options.epochs, options.teacher_epochs),
        "loggers": [],
        "report": False,
        "progress": False,
    }


def subset(options: argparse.Namespace) -> Path:
    """The file of the chosen classes and images, written once."""
    path: Path = options.out / f"data_{options.classes}x{options.images_per_class}.npz"
    if path.is_file():
        return path
    with np.load(options.data, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    known = 1 + int(arrays["train_y"].max())
    if not 2 <= options.classes <= known:
        raise UserError(f"--classes is {options.classes}; {options.data} has {known}, and at least 2 are needed.")
    kept = [np.flatnonzero(arrays["train_y"] == label)[: options.images_per_class] for label in range(options.classes)]
    train_rows, test_rows = np.concatenate(kept), np.flatnonzero(arrays["test_y"] < options.classes)
    chosen = {f"train_{axis}": arrays[f"train_{axis}"][train_rows] for axis in "xy"}
    chosen |= {f"test_{axis}": arrays[f"test_{axis}"][test_rows] for axis in "xy"}
    if "class_names" in arrays:
        chosen["class_names"] = arrays["class_names"][: options.classes]
    with atomic_write(path) as file:
        np.savez(file, **chosen)
    return path


# Names and files


def opened(options: argparse.Namespace) -> list[Network]:
    """The chosen networks that can be made at this size; the others are named with the reason."""
    if options.networks is None:
        chosen = NETWORKS
    else:
        known = {network.name: network for network in NETWORKS}
        chosen = [known.get(name, Network(name, name, "rival")) for name in options.networks]
    found = []
    for network in chosen:
        try:
            load_model(
                network.name, num_classes=options.classes, pretrained=False, input_size=(side(options, network),) * 2
            )
        # A library's network refuses a size in exceptions of its own.
        except Exception as error:
            print(f"{network.name} left out: {error}", flush=True)
        else:
            found.append(network)
    return found


def _keep_or_compare(path: Path, plan: dict[str, Any]) -> None:
    """Write the plan of a new folder; refuse another plan in an old one."""
    if not path.is_file():
        return _write(path, plan)
    old = json.loads(path.read_text())
    if changed := [
        f"{key}: {old.get(key)} -> {plan[key]}" for key in plan if key != "command" and old.get(key) != plan[key]
    ]:
        raise UserError(
            f"{path.parent} holds cells of another recipe ({'; '.join(changed)}), and a table must not mix them. "
            "Give the same options, or another --out."
        )
    return None


def _write(path: Path, values: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(values, indent=2).encode() + b"\n")


def table(options: argparse.Namespace) -> None:
    """Write the results of all finished cells."""
    write_page(options.out, options.to, NETWORKS, command=command(), stem=slug)


if __name__ == "__main__":
    main()
