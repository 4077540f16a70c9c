"""The moving average of a student: its numbers are averaged, its indices are not."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from limbeck.training.module import averaging


class WithIndices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("slots", torch.arange(100))
        self.register_buffer("mask", torch.tensor([True, False]))


@pytest.mark.parametrize("decay", [0.9, 0.99, 0.9999])
def test_whole_numbers_stay_what_they_are(decay: float) -> None:
    student = WithIndices()
    average = AveragedModel(student, multi_avg_fn=averaging(decay), use_buffers=True)
    for _ in range(4):
        with torch.no_grad():
            student.weight.add_(1.0)
        average.update_parameters(student)
    assert torch.equal(average.module.slots, torch.arange(100))
    assert torch.equal(average.module.mask, student.mask)
    expected = 2.0  # the first update copies
    for value in (3.0, 4.0, 5.0):
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(average.module.weight, torch.full((3,), expected))
