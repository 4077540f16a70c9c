"""The comparison of mobile backbones at a tiny scale: its counts, its claims on cells, its labels, and one whole run."""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("fvcore", reason="fvcore is not installed (the extra `benchmarks`)")
pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra `benchmarks`)")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPT = BENCHMARKS / "mobile_backbones.py"


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """The scripts' folder on the path, as it is for a script that is run."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five labels, mixed in order, each of one brightness under noise; each image's first pixel is its number."""
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 60), ("test", 25)):
        labels = np.arange(count) * 7 % 5
        images = (random.integers(0, 50, (count, 16, 16, 3)) + 100 * labels[:, None, None, None] % 250).astype(np.uint8)
        images[:, 0, 0, 0] = np.arange(count)
        arrays |= {f"{split}_x": images, f"{split}_y": labels}
    path = tmp_path_factory.mktemp("data") / "noise.npz"
    np.savez(path, **arrays, class_names=np.array(list("abcde")))
    return path


@pytest.mark.parametrize(
    ("name", "macs", "activations"),
    [("mobilenetv3_large_100", 0.22e9, 4.4e6), ("starnet_s1", 0.42e9, 5.0e6), ("deit_tiny_patch16_224", 1.26e9, 6.0e6)],
)
def test_counts_are_those_that_timm_publishes(name: str, macs: float, activations: float) -> None:
    from mobile_backbones_facts import counts, deployed

    from limbeck.models import load_model

    found = counts(deployed(load_model(name, pretrained=False)))
    assert found["macs"] == pytest.approx(macs, rel=0.025)
    assert found["activations"] == pytest.approx(activations, rel=0.01)


def test_a_folded_network_computes_the_same_with_fewer_parameters() -> None:
    from mobile_backbones_facts import deployed

    from limbeck.models import load_model

    model = load_model("mobileone_s0", pretrained=False, num_classes=7, input_size=(64, 64)).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before, size = model(images).logits, sum(p.numel() for p in model.parameters())
        after = deployed(model)(images).logits
    # Random weights without training make large logits.
    assert torch.allclose(before, after, rtol=0, atol=1e-4 * float(before.abs().max()))
    assert sum(p.numel() for p in model.parameters()) < size


def test_the_subset_is_the_first_images_of_the_first_labels(data: Path, tmp_path: Path) -> None:
    from mobile_backbones import subset

    path = subset(argparse.Namespace(data=data, out=tmp_path, classes=3, images_per_class=4))
    with np.load(data) as whole, np.load(path) as part:
        for label in range(3):
            own = whole["train_x"][whole["train_y"] == label]
            assert (part["train_x"][part["train_y"] == label] == own[:4]).all()
        assert len(part["train_y"]) == 12
        assert sorted(part["test_y"]) == sorted(whole["test_y"][whole["test_y"] < 3])
        assert list(part["class_names"]) == ["a", "b", "c"]


def test_a_claim_is_exclusive_and_ends_with_its_process(tmp_path: Path) -> None:
    from mobile_backbones import claim

    path = tmp_path / "cell.lock"
    code = (
        f"import fcntl, time; file = open({str(path)!r}, 'a'); fcntl.flock(file, fcntl.LOCK_EX); "
        "print(1, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with claim(path) as mine:
            assert not mine
        other.send_signal(signal.SIGKILL)
        other.wait()
    with claim(path) as mine:
        assert mine
        with claim(path) as twice:
            assert not twice


def test_a_cell_that_kills_its_processes_is_left_to_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cells import ATTEMPTS, Cell, finish

    def verb(**_values: Any) -> None:
        raise AssertionError("started again")

    (tmp_path / "cell.lock").write_text("1\n" * ATTEMPTS)
    assert finish(Cell(tmp_path / "cell", verb, {}))
    assert "left out" in capsys.readouterr().out


def test_labels_cover_neither_each_other_nor_a_point() -> None:
    import matplotlib.pyplot as plt
    from mobile_backbones_page import place_labels

    random = np.random.default_rng(0)
    figure, axes = plt.subplots(figsize=(10, 6.6), dpi=100)
    points = [(float(x), float(y)) for x, y in random.random((25, 2))]
    axes.plot(*zip(*points, strict=True), "o")
    figure.canvas.draw()
    anchors = [(x, y, f"network {number}", "k", number < 4) for number, (x, y) in enumerate(points)]
    boxes = place_labels(axes, anchors, points)
    assert len(boxes) == len(points)
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])
        assert not any(box.contains(*point) for point in axes.transData.transform(points))
    plt.close(figure)


SLOW = pytest.mark.skipif(
    os.environ.get("LIMBECK_ALL_FAMILIES") != "1", reason="about two minutes; set LIMBECK_ALL_FAMILIES=1"
)


@pytest.fixture(scope="module")
def written(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a whole run whose cells two processes shared, and what those printed."""
    out = tmp_path_factory.mktemp("mobile")
    networks = ["--networks", "test_byobnet", "no_such_network", "--size", "32", "--classes", "3", "--out", str(out)]
    training = [
        *("train", *networks, "--data", str(data), "--images_per_class", "8", "--epochs", "1", "--batch_size", "8"),
        *("--seeds", "2", "--teacher", "limbeck:resnet8", "--teacher_epochs", "12"),
    ]
    together = [
        _start(training),
        _start(training),
        _start(["facts", *networks, "--published_size", "64", "--runs", "2"]),
    ]
    said = [process.communicate()[0] for process in together]
    assert [process.returncode for process in together] == [0, 0, 0], "\n".join(said)[-3000:]
    table = _start(["table", "--out", str(out), "--to", str(out / "page")])
    assert (table.communicate()[0], table.returncode)[1] == 0
    return out, "\n".join(said)


def _start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, SCRIPT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )


@SLOW
def test_every_cell_is_trained_once(written: tuple[Path, str]) -> None:
    out, said = written
    cells = sorted(str(path.parent.relative_to(out / "cells")) for path in out.glob("cells/**/summary.json"))
    methods = ("kd_temperature_4.0_0", "kd_temperature_4.0_1", "none_0", "none_1")
    assert cells == ["teacher", *(f"test_byobnet/{method}" for method in methods)]
    for cell in cells:
        # One attempt is noted for each; both processes together printed its result once.
        assert len((out / "cells" / f"{cell}.lock").read_text().splitlines()) == 1
        assert said.count(f"{cell}: ") == 1
    assert "no_such_network left out" in said


@SLOW
def test_the_table_holds_what_the_cells_measured(written: tuple[Path, str]) -> None:
    out, _ = written
    results, page = json.loads((out / "page.json").read_text()), (out / "page.md").read_text()
    (row,) = results["networks"]
    for method, stem in (("none", "none"), ("kd(temperature=4.0)", "kd_temperature_4.0")):
        cells = [out / "cells" / "test_byobnet" / f"{stem}_{seed}" / "summary.json" for seed in (0, 1)]
        last = [json.loads(cell.read_text())["accuracy"]["last"] for cell in cells]
        assert row["accuracy"][method]["last"] == last
        assert row["accuracy"][method]["mean"] == pytest.approx(sum(last) / 2)
        assert f"{100 * row['accuracy'][method]['mean']:.1f} ± " in page
    assert row["published"]["macs"] > 3 * row["facts"]["macs"]
    assert row["facts"]["latency_ms"] > 0
    assert "python" in results["command"]
    assert results["environment"]["torch"] in page
    assert (out / "page.png").stat().st_size > 10_000


@SLOW
def test_cells_of_another_recipe_are_not_mixed(written: tuple[Path, str], data: Path) -> None:
    out, _ = written
    changed = [
        "train",
        "--networks",
        "test_byobnet",
        "--size",
        "32",
        "--classes",
        "3",
        "--out",
        str(out),
        "--epochs",
        "2",
    ]
    process = _start([*changed, "--data", str(data), "--images_per_class", "8", "--batch_size", "8"])
    assert "epochs: 1 -> 2" in process.communicate()[0]
    assert process.returncode != 0
