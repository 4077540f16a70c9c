"""Steps on pictures that are drawn for them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.models.base import VisionModel
from limbeck.synthesis.base import Made, Setting, StreamedSynthesis
from limbeck.synthesis.streaming import StreamedTask, make_step_loader


class Counting(StreamedSynthesis):
    """Draws pictures as bright as it has learned often."""

    student_steps = 3

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.learned = 0

    def learn(self, student: VisionModel | None) -> None:
        self.learned += 1

    def draw(self, count: int) -> Tensor:
        return torch.full((count, 3, *self.setting.size), self.learned / 10)

    def make(self, count: int, done: int = 0) -> Any:
        yield Made(self.draw(count))

    def state_dict(self) -> dict[str, Any]:
        return {"learned": self.learned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.learned = state["learned"]


def task(setting: Setting, drawn: int = 4, *, with_labels: bool = False) -> StreamedTask:
    return StreamedTask(4, Counting(setting), setting.teacher, drawn=drawn, with_labels=with_labels)


def test_the_generator_learns_once_for_so_many_steps(resnet_setting: Setting) -> None:
    one = task(resnet_setting)
    batches = list(make_step_loader(28, batch_size=4))
    shades = [round(float(one.learn_from(batch)[0].mean()) * 10) for batch in batches]
    assert shades == [1, 1, 1, 2, 2, 2, 3]


def test_a_resumed_run_takes_the_same_turns(resnet_setting: Setting) -> None:
    batches = list(make_step_loader(28, batch_size=4))
    first, second = task(resnet_setting), task(resnet_setting)
    for batch in batches[:4]:
        first.learn_from(batch)
    second.load_state_dict(first.state_dict())
    for batch in batches[4:]:
        assert torch.equal(first.learn_from(batch)[0], second.learn_from(batch)[0])
    assert first.state_dict() == second.state_dict()


def test_labels_are_the_teachers_answers_where_they_are_asked_for(resnet_setting: Setting) -> None:
    batch = next(iter(make_step_loader(4, batch_size=4)))
    images, target = task(resnet_setting, with_labels=True).learn_from(batch)
    with torch.no_grad():
        assert torch.equal(target, resnet_setting.teacher(images).logits.argmax(1))
    assert task(resnet_setting).learn_from(batch)[1].tolist() == [-1] * 4


@pytest.mark.parametrize("side", [16, 12])
def test_drawn_pictures_join_those_of_the_loader(resnet_setting: Setting, side: int) -> None:
    batch = {"image": torch.zeros(2, 3, side, side), "label": torch.zeros(2), "index": torch.arange(2)}
    images, _ = task(resnet_setting, drawn=4).learn_from(batch)
    assert images.shape == (6, 3, side, side)
    assert images[:2].abs().max() == 0
    torch.testing.assert_close(images[2:], torch.full((4, 3, side, side), 0.1))
