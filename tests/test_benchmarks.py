"""The step-cost benchmark at a tiny scale: the quantities that do not depend on the machine have closed forms."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "step_cost.py"
FULL = "manifold(intra=0.0, inter=0.0, random=0.0, full=1.0)"
# Of the smoke pair of transformers at 64 px: images, patches, widths of student and teacher, blocks that manifold pairs.
B, N, DS, DT, BLOCKS = 3, 16, 64, 96, 6
ADAMW = 8  # element-wise multiply-adds per projector parameter


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What one run of the documented command wrote."""
    out = tmp_path_factory.mktemp("step_cost") / "smoke"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--smoke", "--repeats", "2", "--warmups", "0", "--threads", "1", "--out", out],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.with_name("smoke.json").read_text()), out.with_name("smoke.md").read_text()


@pytest.fixture(scope="module")
def vits(written: tuple[dict[str, Any], str]) -> dict[str, dict[str, Any]]:
    return written[0]["pairs"]["smoke_vit"]["methods"]


def test_losses_on_logits_multiply_no_matrices(written: tuple[dict[str, Any], str]) -> None:
    for pair in written[0]["pairs"].values():
        for method in ("none", "kd", "nkd"):
            assert pair["methods"][method]["own_multiply_adds"] == 0
            assert pair["methods"][method]["predicted"] == 1


def test_multiply_adds_of_vitkd(vits: dict[str, dict[str, Any]]) -> None:
    generator = 2 * 9 * DT * DT
    # Forward, gradient of the input and gradient of the weights: three times each, since the first convolution's
    # input depends on the student and on the mask token.
    products = 3 * B * N * (generator + 3 * DS * DT)
    parameters = generator + 2 * DT + 3 * (DS * DT + DT) + DT
    assert vits["vitkd"]["own_multiply_adds"] == products + ADAMW * parameters
    assert vits["vitkd+nkd"]["own_multiply_adds"] == vits["vitkd"]["own_multiply_adds"]


def test_multiply_adds_of_the_full_manifold_grow_with_the_patches_not_their_square(
    vits: dict[str, dict[str, Any]],
) -> None:
    # The three products forward; backward two for SᵀS and one for SᵀT, none for the teacher's own.
    per_patch = DS**2 + DT**2 + DS * DT + 2 * DS**2 + DS * DT
    assert vits[FULL]["own_multiply_adds"] == BLOCKS * B * N * per_patch


def test_the_prediction_is_one_plus_the_share_of_own_work(written: tuple[dict[str, Any], str]) -> None:
    for pair in written[0]["pairs"].values():
        assert pair["refused"] == {}
        for row in pair["methods"].values():
            assert row["predicted"] == pytest.approx(1 + row["own_multiply_adds"] / pair["multiply_adds"])


def test_memory_of_the_full_manifold_has_no_map_of_all_pairs(written: tuple[dict[str, Any], str]) -> None:
    rows = written[0]["memory"]["rows"]
    extra = {(row["form"], row["width"], row["batch"]): row["extra_bytes"] for row in rows}
    tokens, widths, batches = (sorted({row[key] for row in rows}) for key in ("tokens", "width", "batch"))
    patches = {batch: batch * tokens[0] for batch in batches}
    for width in widths:
        small, medium, large = batches
        # From its definition, at least both models' maps of all pairs are held.
        assert extra["explicit", width, large] >= 2 * 4 * patches[large] ** 2
        # The trace form grows in a straight line with the patches, by a few copies of their tokens.
        assert small * 4 == medium * 2 == large
        first = extra["full", width, medium] - extra["full", width, small]
        second = extra["full", width, large] - extra["full", width, medium]
        assert second == pytest.approx(2 * first, rel=0.1)
        assert second <= 8 * 4 * width * (patches[large] - patches[medium])


def test_the_page_names_command_versions_and_every_method(written: tuple[dict[str, Any], str]) -> None:
    results, page = written
    assert "--smoke" in results["command"]
    assert results["command"] in page
    assert results["threads"] == 1
    for name in ("torch", "timm", "python", "device"):
        assert results["environment"][name] in page
    for method in results["pairs"]["smoke_vit"]["methods"]:
        assert f"| {method} |" in page
