import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses import USKD, uskd_loss
from limbeck.losses.uskd import middle_level, target_labels, zipf_labels

LOGITS = torch.tensor([[2, 0.5, -1, 0], [0.3, 1.2, 0.1, -0.7]], dtype=torch.float64)
WEAK = torch.tensor([[0.2, 0.9, 0.1, -0.3], [0, 0.4, 0.8, 1.5]], dtype=torch.float64)
TARGET = torch.tensor([0, 2])
BOTH_SCORES = ("probability", "log")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(logits: Tensor, weak: Tensor, target: list[dict[int, float]], score: str = "probability") -> list[float]:
    """The three parts for labels given as {class: weight}, by loops; the largest weight first in each."""

    def softmax(row: list[float]) -> list[float]:
        whole = sum(map(math.exp, row))
        return [math.exp(value) / whole for value in row]

    num_images, num_classes = logits.shape
    final, early = [softmax(row) for row in logits.tolist()], [softmax(row) for row in weak.tolist()]
    parts = [0.0, 0.0, 0.0]
    for column in range(2):
        having = [b for b in range(num_images) if len(target[b]) > column]
        squares = {b: final[b][list(target[b])[column]] ** 2 for b in having}
        for b in having:
            y, value = list(target[b].items())[column]
            label = squares[b] + value - sum(squares.values()) / len(having)
            parts[0] -= label * math.log(final[b][y]) / num_images
    for b in range(num_images):
        s = final[b] if score == "probability" else [math.log(p) for p in final[b]]
        rest_s, rest_w = 1 - sum(s[y] for y in target[b]), 1 - sum(early[b][y] for y in target[b])
        scores = [early[b][i] / (rest_w + 1e-6) + s[i] / (rest_s + 1e-6) for i in range(num_classes)]
        order = sorted(range(num_classes), key=lambda i: -scores[i])
        others = [i for i in range(num_classes) if i not in target[b]]
        zipf = {i: 1 / (order.index(i) + 1) for i in others}
        remaining = sum(math.exp(logits[b, i].item()) for i in others)
        for i in others:
            parts[1] -= zipf[i] / sum(zipf.values()) * (logits[b, i].item() - math.log(remaining)) / num_images
        for i in range(num_classes):
            label = 0.9 * target[b].get(i, 0.0) + 0.1 / num_classes
            parts[2] -= label * math.log(early[b][i]) / num_images
    return parts


def parts_of(logits: Tensor, weak: Tensor, target: Tensor, score: str = "probability") -> list[float]:
    weights = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    return [uskd_loss(logits, weak, target, *w, score=score).item() for w in weights]


@pytest.mark.parametrize("score", BOTH_SCORES)
def test_known_vectors(score: str) -> None:
    target, other, weak = parts_of(LOGITS, WEAK, TARGET, score)
    assert target == pytest.approx(0.8743293812, abs=1e-9)
    assert other == pytest.approx(1.1088832334, abs=1e-9)
    assert 0.005 * weak == pytest.approx(0.0073468625, abs=1e-9)
    assert uskd_loss(LOGITS, WEAK, TARGET, score=score).item() == pytest.approx(0.9925645670, abs=1e-9)
    log_final, log_weak = LOGITS.log_softmax(1), WEAK.log_softmax(1)
    of_targets = log_final.gather(1, TARGET.unsqueeze(1))
    labels = target_labels(of_targets, torch.ones(2, 1, dtype=torch.float64))
    assert labels.flatten().tolist() == pytest.approx([1.2365951547, 0.7634048453], abs=1e-8)
    zipf = zipf_labels(log_final, log_weak, F.one_hot(TARGET, 4).bool(), score)
    expected = [[0, 6 / 13, 3 / 13, 4 / 13], [1 / 7, 4 / 7, 0, 2 / 7]]
    torch.testing.assert_close(zipf, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("score", "order", "total"),
    [("probability", [0, 1, 2, 4, 3], 0.8734772827), ("log", [0, 1, 3, 4, 2], 0.8578928671)],
)
def test_the_two_rankings_differ(score: str, order: list[int], total: float) -> None:
    logits = torch.tensor([[2, 1.5, -1, 0.5, 0]], dtype=torch.float64)
    weak = torch.tensor([[0, 0, 1.5, 0.3, 1.2]], dtype=torch.float64)
    zipf = zipf_labels(logits.log_softmax(1), weak.log_softmax(1), torch.tensor([[True, *[False] * 4]]), score)
    assert zipf[0].argsort(descending=True)[:4].tolist() == order[1:]
    assert uskd_loss(logits, weak, torch.tensor([0]), score=score).item() == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize("score", BOTH_SCORES)
def test_equals_a_slow_loop(score: str) -> None:
    logits, weak = 2 * random(5, 7), random(5, 7, seed=1)
    hard = torch.tensor([5, 0, 3, 3, 6])
    expected = slow(logits, weak, [{int(y): 1.0} for y in hard], score)
    assert parts_of(logits, weak, hard, score) == pytest.approx(expected, rel=1e-9)
    # Mixed with each other, but for the last, which was mixed with an image of its own class.
    labels = [{5: 0.7, 0: 0.3}, {3: 0.6, 1: 0.4}, {2: 0.9, 3: 0.1}, {3: 0.5, 6: 0.5}, {6: 1.0}]
    soft = torch.tensor([[label.get(i, 0.0) for i in range(7)] for label in labels], dtype=torch.float64)
    assert parts_of(logits, weak, soft, score) == pytest.approx(slow(logits, weak, labels, score), rel=1e-9)


def test_one_hot_labels_are_hard_labels() -> None:
    soft = F.one_hot(TARGET, 4).double()
    torch.testing.assert_close(parts_of(LOGITS, WEAK, soft), parts_of(LOGITS, WEAK, TARGET), rtol=0, atol=0)


def test_two_mixed_classes_leave_nothing_in_the_non_target_part() -> None:
    logits, weak = random(3, 2).requires_grad_(), random(3, 2, seed=1)
    mixed = torch.tensor([[0.6, 0.4], [0.2, 0.8], [0.5, 0.5]], dtype=torch.float64)
    value = uskd_loss(logits, weak, mixed, 0.0, 1.0, 0.0)
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().sum() == 0


def test_gradients_are_those_of_the_formula_with_fixed_labels() -> None:
    """P and the Zipf labels are targets, not functions of the student."""
    logits, weak = LOGITS.clone().requires_grad_(), WEAK.clone().requires_grad_()
    uskd_loss(logits, weak, TARGET).backward()
    fixed, early = LOGITS.clone().requires_grad_(), WEAK.clone().requires_grad_()
    labels = [1.2365951547, 0.7634048453]
    zipf = [{1: 6 / 13, 2: 3 / 13, 3: 4 / 13}, {0: 1 / 7, 1: 4 / 7, 3: 2 / 7}]
    total = torch.zeros((), dtype=torch.float64)
    for b, y in enumerate(TARGET.tolist()):
        others = list(zipf[b])
        without = fixed[b, others].log_softmax(0)
        total = total - labels[b] * fixed[b].log_softmax(0)[y] / 2
        total = total - 0.1 * sum(zipf[b][i] * without[place] for place, i in enumerate(others)) / 2
        smooth = 0.9 * F.one_hot(TARGET[b], 4) + 0.025
        total = total - 0.005 * (smooth * early[b].log_softmax(0)).sum() / 2
    total.backward()
    torch.testing.assert_close(logits.grad, fixed.grad)
    torch.testing.assert_close(weak.grad, early.grad)


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4], [0.0, 1e4, -1e4]], requires_grad=True)
    loss = uskd_loss(logits, torch.zeros(2, 3), torch.tensor([2, 1]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = uskd_loss(LOGITS.to(dtype), WEAK.to(dtype), TARGET)
    expected = uskd_loss(LOGITS.to(dtype).float(), WEAK.to(dtype).float(), TARGET)
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)


def test_the_middle_is_the_published_one(plain, pyramid) -> None:
    assert middle_level(plain(depth=12)).name == "blocks.5"
    assert middle_level(pyramid(channels=(64, 128, 256, 512), grids=(8, 4, 2, 1))).name == "stages.2"
    assert middle_level(pyramid(channels=(4,), grids=(8,))).name == "stages.0"
    assert middle_level(plain(depth=1)).name == "blocks.0"


@pytest.mark.parametrize("family", ["plain", "pyramid"])
def test_the_method_learns_from_the_student_alone(family: str, plain, pyramid, make_outputs) -> None:
    facts = plain(depth=4) if family == "plain" else pyramid()
    loss = USKD(facts, facts).double()
    assert not loss.needs_teacher
    assert loss.needs_labels
    assert (loss.default_weight, loss.default_task_weight, loss.pairs) == (1.0, 1.0, ())
    own, target = make_outputs(facts, loss.student_request), torch.tensor([0, 4, 2])
    value = loss(own, None, target)
    vector = own.class_tokens["blocks.1"] if family == "plain" else own.maps["stages.1"].mean((2, 3))
    expected = uskd_loss(own.logits, loss.classifier(vector), target)
    torch.testing.assert_close(value, expected, rtol=0, atol=0)
    value.backward()
    read = own.class_tokens["blocks.1"] if family == "plain" else own.maps["stages.1"]
    assert read.grad is not None
    assert read.grad.abs().sum() > 0, "the weak part teaches the first half of the network"
    assert loss.classifier.weight.grad is not None
    with pytest.raises(UserError, match="unlabelled"):
        loss(own, None)


def test_a_plain_network_without_class_token_gives_its_mean(plain, make_outputs) -> None:
    loss = USKD(plain(depth=4), plain(depth=4)).double()
    own, target = make_outputs(plain(depth=4), loss.student_request), torch.tensor([0, 4, 2])
    own.class_tokens = {}
    expected = uskd_loss(own.logits, loss.classifier(own.maps["blocks.1"].mean((2, 3))), target)
    torch.testing.assert_close(loss(own, None, target), expected, rtol=0, atol=0)


def test_options_are_checked(plain) -> None:
    for option in ("alpha", "beta", "mu"):
        with pytest.raises(UserError, match=f"uskd: {option} is -1"):
            USKD(plain(), plain(), **{option: -1.0})
    with pytest.raises(UserError, match="at least two classes"):
        USKD(plain(num_classes=1), plain(num_classes=1))
    with pytest.raises(UserError, match="offers none"):
        USKD(plain(depth=0), plain(depth=0))
