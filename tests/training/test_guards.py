"""A loss that is no number stops the run with the step, the term and the batch."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from limbeck.training.guards import FiniteGuard, NotFiniteError


def test_the_term_the_step_and_the_batch_are_named(tmp_path: Path) -> None:
    guard = FiniteGuard(tmp_path)
    images, target = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    batch = {"images": images, "target": target}
    guard.watch(6, {"task": torch.tensor(1.0), "total": torch.tensor(1.0)}, lambda: batch)
    terms = {"task": torch.tensor(1.0), "kd": torch.tensor(float("nan")), "total": torch.tensor(float("nan"))}
    with pytest.raises(NotFiniteError, match=r"'kd' is nan at step 7.*bad_batch_step7"):
        guard.watch(7, terms, lambda: batch)
    with safe_open(tmp_path / "bad_batch_step7.safetensors", "pt") as saved:
        torch.testing.assert_close(saved.get_tensor("images"), images)
        torch.testing.assert_close(saved.get_tensor("target"), target)
        assert json.loads(saved.metadata()["terms"])["task"] == 1.0


def test_infinity_counts_and_bad_images_are_blamed(tmp_path: Path) -> None:
    images = torch.full((1, 3, 2, 2), float("inf"))
    with pytest.raises(NotFiniteError, match="images themselves"):
        FiniteGuard(tmp_path).watch(0, {"total": torch.tensor(float("inf"))}, lambda: {"images": images})
