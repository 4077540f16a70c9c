"""What is said while pictures are made: rarely, rightly, and without any effect on them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from limbeck.synthesis.base import Setting, Synthesis
from limbeck.synthesis.build import build_synthesis
from limbeck.synthesis.names import parse_synthesis
from limbeck.synthesis.pace import Pace


class Clock:
    """Time that passes as it is told to, and by `tick` seconds whenever somebody looks."""

    def __init__(self) -> None:
        self.now, self.tick = 1000.0, 0.0

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("limbeck.synthesis.pace.time", type("time", (), {"monotonic": clock}))
    return clock


def test_a_line_every_ten_seconds_and_numbers_are_read_only_for_it(clock: Clock) -> None:
    said: list[str] = []
    asked: list[float] = []

    def log() -> dict[str, float]:
        asked.append(clock.now)
        return {"ce": 0.41234, "loss": 2.3}

    pace = Pace(said.append)
    for step in range(1, 41):  # a second each, and two from step 25 on
        clock.now += 1 if step < 25 else 2
        pace.tell("these 64 pictures", step, 40, log)
    assert said[0] == "    step 11 of 40, about 29 s left of these 64 pictures, ce 0.412, loss 2.3"
    assert [line.split(",")[0].strip() for line in said] == [f"step {step} of 40" for step in (11, 21, 28, 33, 38)]
    assert said[3].startswith("    step 33 of 40, about 14 s left")  # by the pace of the last five steps
    assert len(asked) == len(said)


def test_every_course_has_its_own_time(clock: Clock) -> None:
    said: list[str] = []
    pace = Pace(said.append)
    for what in ("one", "one", "other"):
        for step in (1, 2, 3):
            clock.now += 6
            pace.tell(what, step, 4, dict)
    assert said == [f"    step 3 of 4, about 6 s left of {what}" for what in ("one", "one", "other")]


def test_nobody_listens(clock: Clock) -> None:
    pace = Pace(None)
    for step in (1, 2, 3):
        clock.now += 60
        pace.tell("it", step, 9, lambda: pytest.fail("read"))


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("invert(iterations=9)", "    step 4 of 9, about 20 s left of these 6 pictures, ce "),
        ("dafl(generator_steps=9)", "    step 4 of 9, about 20 s left of the generator's training, one_hot "),
        ("fast(g_steps=9, latent=8, channels=4)", "    step 4 of 9, about 20 s left of these 6 pictures, bn "),
        ("cmi(g_steps=9, latent=8, channels=4)", "    step 4 of 9, about 20 s left of these 6 pictures, bn "),
        ("nayer(g_steps=3, loops=3)", "    step 4 of 9, about 20 s left of these 18 pictures, bn "),
    ],
    ids=lambda text: text.partition("(")[0],
)
def test_pictures_are_the_same_whether_somebody_listens_or_not(
    clock: Clock, resnet_setting: Setting, text: str, first: str
) -> None:
    clock.tick = 4
    said: list[str] = []

    def made(say: Callable[[str], None] | None) -> tuple[torch.Tensor, dict[str, float]]:
        way: Any = build_synthesis(parse_synthesis(text)[0], replace(resnet_setting, say=say))
        assert isinstance(way, Synthesis)
        return torch.cat([batch.images for batch in way.make(6)]), way.log()

    (silent, numbers), (told, same) = made(None), made(said.append)
    assert torch.equal(silent, told) and numbers == same
    assert said[0].startswith(first) and "loss " in said[0]
    assert [line.split(",")[0].strip() for line in said] == ["step 4 of 9", "step 7 of 9"]


def test_a_listener_is_no_part_of_a_setting(resnet_setting: Setting) -> None:
    assert replace(resnet_setting, say=print) == resnet_setting
    assert "say" not in repr(replace(resnet_setting, say=print))
