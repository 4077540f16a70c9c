import itertools

import pytest
import torch

from limbeck.synthesis.inversion.engine import is_judged, on_canvas, pooled
from limbeck.synthesis.inversion.stages import Stage, growing, scaled, total

LOW, HIGH = torch.full((1, 3, 1, 1), -2.0), torch.full((1, 3, 1, 1), 2.0)


def test_rate_rises_then_falls_to_the_final_one() -> None:
    stage = Stage(100, lr=0.2, final_lr=0.02, warmup=10)
    rates = [stage.learning_rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.02)
    assert rates[9] == rates[10] == max(rates) == pytest.approx(0.2)
    assert rates[55] == pytest.approx(0.11)
    assert rates[99] == pytest.approx(0.02, abs=1e-3)
    assert all(late <= early for early, late in itertools.pairwise(rates[10:]))


def test_rolls_share_a_stage_out() -> None:
    stage = Stage(10, 0.1, rolls=((1, 1), (2, 2)))
    assert [stage.roll(step) for step in range(10)] == [(1, 1)] * 5 + [(2, 2)] * 5


@pytest.mark.parametrize("iterations", [1, 2, 3, 5, 17, 100, 3000, 7001])
def test_scaling_gives_exactly_what_was_asked_for_and_ends_as_published(iterations: int) -> None:
    stages = [Stage(2000, 0.1, warmup=100, pool=2), Stage(1000, 0.1, warmup=100), Stage(500, 0.2)]
    made = scaled(stages, iterations)
    assert total(made) == iterations
    assert made[-1].lr == 0.2
    assert all(stage.iterations >= 1 and stage.warmup <= stage.iterations for stage in made)
    if iterations >= 100:
        assert made[0].iterations == pytest.approx(iterations * 4 / 7, abs=1)
        assert made[0].warmup == pytest.approx(made[0].iterations / 20, abs=1)


def test_canvases_grow_to_exactly_the_size() -> None:
    assert growing((224, 224), 2, 8) == [(28 * k, 28 * k) for k in range(2, 9)]
    assert growing((30, 50), 2, 8)[-1] == (30, 50)
    assert growing((2, 2), 2, 8) == [(1, 1), (2, 2)]


def test_canvas_keeps_the_earlier_result_in_its_centre() -> None:
    earlier = torch.randn(2, 3, 4, 6).clamp(-1, 1)
    canvas = on_canvas(earlier, (8, 9), 2, LOW, HIGH)
    assert torch.equal(canvas[:, :, 2:6, 1:7], earlier)
    assert canvas.shape == (2, 3, 8, 9)
    assert canvas.abs().max() <= 2
    assert canvas[:, :, :2].std() > 0.5
    same = on_canvas(earlier, (4, 6), 2, LOW, HIGH)
    assert torch.equal(same, earlier) and same.data_ptr() != earlier.data_ptr()


def test_pooling_averages() -> None:
    images = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(pooled(images, 2)[0, 0, 0, 0], images[0, 0, :2, :2].mean())
    assert pooled(images, 1) is images


@pytest.mark.parametrize("iterations", [1, 7, 20, 21, 1000])
def test_the_last_pictures_are_always_judged_and_not_many_others(iterations: int) -> None:
    judged = [step for step in range(iterations) if is_judged(step, iterations)]
    assert judged[-1] == iterations - 1
    assert len(judged) <= 20
