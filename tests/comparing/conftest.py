"""Comparisons that were never run: folders in the shape that training leaves, with planted gains, costs and failures."""

import json

import numpy as np
import pytest
import yaml

from limbeck.comparing.base import Cell, Outcome
from limbeck.reporting.detection.score_file import write_scores
from limbeck.tasks.detection_scores import DetectionScores


def answers(accuracy, labels, classes, *, difficulty, rng):
    """(N, K) logits that are right on exactly this share of the images, the easier ones first with some luck."""
    luck = difficulty + 0.5 * rng.standard_normal(len(labels))
    right = np.zeros(len(labels), bool)
    right[np.argsort(luck)[: round(accuracy * len(labels))]] = True
    guesses = np.where(right, labels, (labels + 1 + rng.integers(0, classes - 1, len(labels))) % classes)
    logits = np.zeros((len(labels), classes), np.float32)
    logits[np.arange(len(labels)), guesses] = 2.0
    return logits


@pytest.fixture
def make_comparison(tmp_path):
    """Write the folders of a comparison and give its cells.

    `methods` maps each method to its gain over the base accuracy 0.7, or to a dict of gain, time (factor), memory (factor)
    and fails (a dict of seed to reason, None for no reason).
    """

    def make(
        methods, *, seeds=3, images=1000, classes=10, epochs=8, noise=0.003, task="classification", base=0.7, where="cmp", seed=0,
        names=None,
    ):  # fmt: skip
        rng = np.random.default_rng(seed)
        labels = np.arange(images) % classes
        difficulty = rng.standard_normal(images)
        names = names or [f"class {place}" for place in range(classes)]
        shared = noise * rng.standard_normal(seeds)
        teacher = answers(0.85, labels, classes, difficulty=difficulty, rng=rng)
        cells = []
        for method, planted in methods.items():
            planted = planted if isinstance(planted, dict) else {"gain": planted}
            for run_seed in range(seeds):
                folder = tmp_path / where / f"{method}-seed{run_seed}"
                folder.mkdir(parents=True)
                options = {
                    "teacher": "T",
                    "student": "S",
                    "data": "D",
                    "method": method,
                    "seed": run_seed,
                    "epochs": epochs,
                }
                cells.append(Cell(method, run_seed, folder, options))
                (folder / "recipe.yaml").write_text(yaml.safe_dump(options | {"task": task}))
                score = base + planted.get("gain", 0.0) + shared[run_seed] + noise * rng.standard_normal()
                per_epoch = 10.0 * planted.get("time", 1.0)
                fails = planted.get("fails", {})
                done = epochs if run_seed not in fails else 2
                curve = score - 0.4 * np.exp(-3 * np.arange(1, done + 1) / epochs) + 0.4 * np.exp(-3)
                main = "ap" if task == "detection" else "accuracy"
                rows = [
                    {
                        "kind": "val",
                        "epoch": e,
                        "step": 10 * (e + 1),
                        main: float(v),
                        "seconds": per_epoch * (e + 1) + 3,
                    }
                    for e, v in enumerate(curve)
                ]
                (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
                if run_seed in fails:
                    reason = fails[run_seed]
                    (folder / "log.txt").write_text(
                        "Traceback (most recent call last):\n  File\nRuntimeError: it broke\n"
                    )
                    if reason:
                        (folder / "failed.txt").write_text(reason)
                    continue
                summary = {
                    "verb": "distill", "name": "S", "teacher": "T", "method": method, "class_names": names, "seconds": 100.0,
                    "training_seconds": per_epoch * epochs + 3, "peak_memory": int(1e9 * planted.get("memory", 1.0)),
                }  # fmt: skip
                if task == "detection":
                    summary |= {
                        "task": "detection",
                        "scores": {"student": {"bbox": {"ap": score}}, "teacher": {"bbox": {"ap": 0.8}}},
                    }
                    by_class = score + 0.02 * rng.standard_normal(classes)
                    write_scores(folder, tuple(names), {"student": {"bbox": _detection_scores(names, by_class)}})
                else:
                    logits = answers(score, labels, classes, difficulty=difficulty, rng=rng)
                    np.savez(folder / "predictions.npz", labels=labels, student_logits=logits, teacher_logits=teacher)
                    own, given = logits.argmax(1), teacher.argmax(1)
                    summary |= {
                        "accuracy": {"last": float((own == labels).mean()), "best": 0.99, "best_epoch": 1},
                        "teacher_accuracy": float((given == labels).mean()), "agreement": float((own == given).mean()),
                    }  # fmt: skip
                (folder / "summary.json").write_text(json.dumps(summary))
                (folder / "report.html").write_text("<p>a run</p>")
        return cells

    return make


def _detection_scores(names, class_ap):
    curve = np.zeros((len(names), 3))
    counts = np.full(len(names), 5)
    return DetectionScores(
        "bbox", tuple(names), float(class_ap.mean()), 0.9, 0.5, 0.1, 0.2, 0.3, 0.6, class_ap, class_ap, np.linspace(0, 1, 3),
        curve, curve, counts, counts, 0, 6,
    )  # fmt: skip


@pytest.fixture
def make_outcomes(tmp_path):
    """Outcomes without folders: `methods` maps each method to its scores by seed, or to an (n, N) array of right answers."""

    def make(methods, **more):
        outcomes = []
        for method, by_seed in methods.items():
            for seed, value in enumerate(by_seed):
                right = np.asarray(value, bool) if np.ndim(value) else None
                outcomes.append(
                    Outcome(
                        method,
                        seed,
                        tmp_path / f"{method}-{seed}",
                        "finished",
                        score=float(np.mean(value)),
                        right=right,
                        labels=np.zeros(len(right), np.int64) if right is not None else None,
                        **more,
                    )
                )
        return outcomes

    return make
