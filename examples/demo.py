"""The main job on the handwritten digits inside scikit-learn, in a few minutes and without any download.

A teacher learns from all training images. Students, thirty times smaller, see two hundred of them: alone (the control),
and with two ways of learning from the teacher; each with three seeds. Then a report and a verified ONNX file of one student.

    python examples/demo.py [--out runs/demo] [--seeds 3]
"""

import argparse
import statistics
import time
from pathlib import Path

import limbeck
from limbeck.run import Run
from limbeck.verbs import screen

METHODS = {"none": "nothing: the control", "kd": "softened probabilities", "kd+reviewkd": "these and feature maps"}
COMMON = {
    "data": "digits",
    "batch_size": 32,
    "lr": 5e-3,
    "loggers": [],
    "progress": False,
    "report": False,
    "accelerator": "cpu",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    out = new_folder(options.out)
    began = time.perf_counter()
    screen.console.width = max(screen.console.width, 100)

    screen.say("Training the teacher, a wide ResNet-40-2, on all 1438 training images ...")
    screen.console.quiet = True
    teacher = limbeck.train(model="limbeck:wrn_40_2", input_size=8, epochs=10, out=str(out / "teacher"), **COMMON)
    screen.console.quiet = False
    screen.say(f"  accuracy {100 * teacher.accuracy:.2f} % on 359 held-out images")

    runs: dict[str, list[Run]] = {}
    for method in METHODS:
        for seed in range(options.seeds):
            screen.say(f"Training a student, method {method}, seed {seed} ...")
            screen.console.quiet = True
            run = limbeck.distill(
                teacher=str(teacher.path),
                student="limbeck:resnet8",
                student_size=8,
                method=method,
                max_train_images=options.images,
                epochs=options.epochs,
                seed=seed,
                out=str(out / f"{method}_{seed}"),
                **COMMON,
            )
            screen.console.quiet = False
            runs.setdefault(method, []).append(run)

    screen.table(
        f"Students that saw {options.images} images, {options.seeds} seeds, accuracy of the last epoch",
        ("method", "learns from the teacher", "mean", "std", "each"),
        [
            (
                method,
                METHODS[method],
                f"{100 * statistics.mean(run.accuracy for run in group):.2f} %",
                f"{100 * statistics.stdev(run.accuracy for run in group):.2f}" if len(group) > 1 else None,
                ", ".join(f"{100 * run.accuracy:.2f}" for run in group),
            )
            for method, group in runs.items()
        ],
    )
    chosen = runs["kd"][0]
    limbeck.report(str(chosen.path), control=[str(run.path) for run in runs["none"]])
    limbeck.export(str(chosen.path), to="onnx")
    screen.say(f"Done in {time.perf_counter() - began:.0f} s. Open {chosen.report_file} in a browser.")


def new_folder(wanted: Path) -> Path:
    """The wanted folder, or with a number where an earlier demo stands."""
    numbers = (wanted.with_name(f"{wanted.name}-{number}") for number in range(2, 1000))
    return wanted if not wanted.exists() else next(path for path in numbers if not path.exists())


if __name__ == "__main__":
    main()
