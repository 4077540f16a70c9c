"""The step-cost benchmarks at a tiny scale: the quantities that do not depend on the machine have closed forms."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FULL = "manifold(intra=0.0, inter=0.0, random=0.0, full=1.0)"
# Of the smoke pair of transformers at 64 px: images, patches, widths of student and teacher, blocks that manifold pairs.
B, N, DS, DT, BLOCKS = 3, 16, 64, 96, 6
# Element-wise multiply-adds per projector parameter.
ADAMW, SGD = 8, 3


def run(script: str, folder: Path) -> tuple[dict[str, Any], str]:
    """What one run of the documented command wrote."""
    out = folder / "smoke"
    small = ["--smoke", "--repeats", "2", "--warmups", "0", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, BENCHMARKS / script, *small, "--out", out],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.with_name("smoke.json").read_text()), out.with_name("smoke.md").read_text()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    return run("step_cost.py", tmp_path_factory.mktemp("step_cost"))


@pytest.fixture(scope="module")
def memory_rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run("manifold_memory.py", tmp_path_factory.mktemp("manifold_memory"))[0]["memory"]["rows"]


@pytest.fixture(scope="module")
def written_of_detectors(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    pytest.importorskip("transformers", reason="the extra hf is not installed")
    return run("detection_step_cost.py", tmp_path_factory.mktemp("detection_step_cost"))


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


def test_a_step_holds_at_least_what_the_plain_one_holds(written: tuple[dict[str, Any], str]) -> None:
    for pair in written[0]["pairs"].values():
        plain = pair["methods"]["none"]["memory_bytes"]
        assert plain > 0
        for method in ("reviewkd", "vitkd", "vitkd+nkd"):
            assert pair["methods"][method]["memory_bytes"] > plain


def test_the_prediction_is_one_plus_the_share_of_own_work(written: tuple[dict[str, Any], str]) -> None:
    for pair in written[0]["pairs"].values():
        assert set(pair["refused"]) <= {"maskedkd"}  # convolutional networks attend to no patch
        for row in pair["methods"].values():
            assert row["predicted"] == pytest.approx(1 + row["own_multiply_adds"] / pair["multiply_adds"])


def test_memory_of_the_full_manifold_has_no_map_of_all_pairs(memory_rows: list[dict[str, Any]]) -> None:
    rows = memory_rows
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


def test_detectors_teachers_run_what_the_method_needs(written_of_detectors: tuple[dict[str, Any], str]) -> None:
    for pair in written_of_detectors[0]["pairs"].values():
        needed = {method: row["teacher_multiply_adds"] for method, row in pair["methods"].items()}
        whole = pair["whole_teacher_multiply_adds"]
        assert needed["none"] == 0
        assert 0 < needed["pkd"] < whole
        # On maps, and on the maps from which regions are cut: the backbone and its pyramid alone.
        assert {needed[method] for method in ("fgd", "roi_kd") if method in needed} <= {needed["pkd"]}
        assert {needed[method] for method in ("query_kd", "shared_queries") if method in needed} <= {whole}
        for row in pair["methods"].values():
            base = pair["student_multiply_adds"] + row["teacher_multiply_adds"]
            assert row["predicted"] == pytest.approx(1 + row["own_multiply_adds"] / base)


def test_multiply_adds_of_losses_between_detectors(written_of_detectors: tuple[dict[str, Any], str]) -> None:
    rcnn, queries = (written_of_detectors[0]["pairs"][name]["methods"] for name in ("smoke_rcnn", "smoke_queries"))
    images, student, teacher, head, classes = 2, 16, 24, 16, 20
    # Four projectors, forward, gradient of the input and gradient of the weights, on maps of strides 4 to 32.
    cells = sum((64 // stride) ** 2 for stride in (4, 8, 16, 32))
    products = 3 * images * cells * student * teacher
    assert rcnn["pkd"]["own_multiply_adds"] == products + SGD * 4 * student * teacher
    # The teacher's head on each of the student's regions, at most 512 of an image.
    each = 7 * 7 * teacher * head + head * head + 5 * head * (classes + 1)
    regions, rest = divmod(rcnn["roi_kd"]["own_multiply_adds"], each)
    assert rest == 0
    assert 0 < regions <= 512 * images
    # Matching multiplies no matrices; asking both decoders again does.
    assert queries["query_kd"]["own_multiply_adds"] == queries["none"]["own_multiply_adds"] == 0
    assert queries["shared_queries"]["own_multiply_adds"] > 0


def test_the_page_of_detectors_names_every_method_and_says_why_one_is_refused(
    written_of_detectors: tuple[dict[str, Any], str],
) -> None:
    results, page = written_of_detectors
    assert results["command"] in page
    for pair in results["pairs"].values():
        assert all(f"| {method} |" in page for method in pair["methods"])
    refused = results["pairs"]["smoke_queries"]["refused"]
    assert set(refused) == {"roi_kd"}
    assert refused["roi_kd"] in page
