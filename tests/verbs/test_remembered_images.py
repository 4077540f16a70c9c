"""crd, which remembers every training image, in whole runs: trained, resumed, and refused where it cannot remember."""

from pathlib import Path
from typing import Any

import pytest
import torch

import limbeck
from limbeck.errors import UserError
from limbeck.run import Run


@pytest.fixture
def options(tiny: dict[str, Any], teacher_run: Run) -> dict[str, Any]:
    return tiny | {
        "teacher": str(teacher_run.path),
        "student": "limbeck:resnet8",
        "student_size": 8,
        "method": "crd(negatives=64)",
        "max_train_images": 200,
        "report": False,
    }


def state(run: Run) -> dict[str, torch.Tensor]:
    saved: dict[str, torch.Tensor] = torch.load(run.last_checkpoint, weights_only=True)["state_dict"]
    return saved


def test_a_run_remembers_each_image_and_resumes_bit_for_bit(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import limbeck.training.fit
    from limbeck.training.checkpoints import Checkpoints

    class DiesAfterAnEpoch(Checkpoints):
        def on_train_epoch_end(self, *values: Any) -> None:
            super().on_train_epoch_end(*values)
            raise RuntimeError("no power")

    options |= {"epochs": 2}
    whole = limbeck.distill(out=str(tmp_path / "whole"), **options)
    banks = {name: value for name, value in state(whole).items() if name.endswith("_bank")}
    assert len(banks) == 2
    for bank in banks.values():
        assert bank.shape == (200, 128)
        torch.testing.assert_close(bank.norm(dim=1), torch.ones(200))  # the first rows are not of length 1
    monkeypatch.setattr(limbeck.training.fit, "Checkpoints", DiesAfterAnEpoch)
    with pytest.raises(RuntimeError, match="no power"):
        limbeck.distill(out=str(tmp_path / "killed"), **options)
    monkeypatch.undo()
    resumed = limbeck.distill(out=str(tmp_path / "killed"), resume=True, **options)
    first, second = state(whole), state(resumed)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    saved = [(run.path / "student.safetensors").read_bytes() for run in (whole, resumed)]
    assert saved[0] == saved[1]


def test_mixed_images_are_refused_by_name(options: dict[str, Any], tmp_path: Path) -> None:
    for mixing in ({"mixup": 0.2}, {"cutmix": 1.0}):
        with pytest.raises(UserError, match="crd remembers every training image, and mixed images are two each"):
            limbeck.distill(out=str(tmp_path / "run"), epochs=1, **options, **mixing)
