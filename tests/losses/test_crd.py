"""crd: noise-contrastive estimation by hand, the memory, its constants, and what is refused."""

import copy
import math

import pytest
import torch
from torch import Tensor

from limbeck.distiller import Distiller
from limbeck.errors import UserError
from limbeck.losses import CRD, build_losses, crd_loss, parse_methods
from limbeck.models.cifar import create
from limbeck.outputs import ModelFacts, Outputs

IMAGES = 9


def made(plain, make_outputs, seed: int = 0, **options: object) -> tuple[CRD, Outputs, Outputs]:
    """A loss in float64 that expects 9 images, and both models' outputs for numbers 7, 0 and 3."""
    student, teacher = plain(width=4), plain(width=6)
    loss = CRD(student, teacher, **{"features": 5, "negatives": 4, **options}).double()
    loss.expect_images(IMAGES)
    own = make_outputs(student, loss.student_request, seed=seed)
    other = make_outputs(teacher, loss.teacher_request, seed=seed + 1)
    own.numbers = torch.tensor([7, 0, 3])
    return loss, own, other


def unit(vector: Tensor) -> Tensor:
    return vector / math.sqrt(sum(x * x for x in vector.tolist()))


def test_known_vectors() -> None:
    """Z = 2, m = 2 of n = 4 images: m/n = 1/2; P is 1/2 of the image and 1, 1/2 of the negatives."""
    scores = torch.log(torch.tensor([[1.0, 2.0, 1.0]], dtype=torch.float64))
    expected = -(math.log(0.5) + math.log(0.5 / 1.5) + math.log(0.5))
    assert float(crd_loss(scores, torch.tensor(2.0, dtype=torch.float64), 4)) == pytest.approx(expected, rel=1e-12)


def test_knowing_nothing_costs_the_entropy_of_choosing_among_the_negatives() -> None:
    """Equal scores whose Z is estimated: P = 1/n everywhere, so that log(1 + m) + m log(1 + 1/m) remains."""
    m, n = 50, 200
    scores = torch.full((3, m + 1), 1.7, dtype=torch.float64)
    loss = crd_loss(scores, scores.exp().mean() * n, n)
    assert float(loss) == pytest.approx(math.log(1 + m) + m * math.log(1 + 1 / m), rel=1e-12)


def test_extreme_scores_stay_finite() -> None:
    scores = torch.tensor([[-1e4, 1e4, 0.0]], requires_grad=True)
    loss = crd_loss(scores, torch.tensor(1.0), 3)
    loss.backward()
    assert loss.isfinite() and scores.grad is not None and scores.grad.isfinite().all()


def test_it_is_the_published_procedure_written_out(plain, make_outputs) -> None:
    """Loops over images and negatives in float64: two batches, the second with the first one's memory and constants."""
    loss, own, other = made(plain, make_outputs)
    banks = {"s": loss.student_bank.clone(), "t": loss.teacher_bank.clone()}
    constants: dict[str, float] = {}
    for step in range(2):
        torch.manual_seed(step)
        value = loss(own, other)
        torch.manual_seed(step)
        drawn = torch.randint(IMAGES - 1, (3, 4))
        embedded = {
            "s": [unit(loss.student_embedding(v)) for v in own.pooled],
            "t": [unit(loss.teacher_embedding(v)) for v in other.pooled],
        }
        total = 0.0
        for anchor, bank in (("s", "t"), ("t", "s")):
            scores = []
            for image, number in enumerate([7, 0, 3]):
                others = [k for k in range(IMAGES) if k != number]
                choices = [number] + [others[int(place)] for place in drawn[image]]
                scores.append([math.exp((embedded[anchor][image] @ banks[bank][k]).item() / 0.07) for k in choices])
            constants.setdefault(anchor, sum(map(sum, scores)) / 15 * IMAGES)
            for first, *rest in scores:
                noise, z = 4 / IMAGES, constants[anchor]
                total -= math.log(first / z / (first / z + noise)) / 3
                total -= sum(math.log(noise / (score / z + noise)) for score in rest) / 3
        assert value.item() == pytest.approx(total, rel=1e-10)
        for side, bank in banks.items():
            for image, number in enumerate([7, 0, 3]):
                bank[number] = unit(0.5 * bank[number] + 0.5 * embedded[side][image].detach())
        torch.testing.assert_close(loss.student_bank, banks["s"])
        torch.testing.assert_close(loss.teacher_bank, banks["t"])
        assert loss.partitions.tolist() == pytest.approx([constants["s"], constants["t"]], rel=1e-10)


def test_gradients_reach_the_student_and_both_embeddings_and_are_right(plain, make_outputs) -> None:
    loss, own, other = made(plain, make_outputs)
    loss(own, other).backward()
    assert other.pooled.grad is None
    assert own.pooled.grad.abs().min() > 0
    assert all(p.grad is not None and p.grad.any() for p in loss.parameters())
    assert own.logits.grad is None

    loss.eval()

    def value(pooled: Tensor) -> Tensor:
        torch.manual_seed(2)
        result: Tensor = loss(Outputs(own.logits, pooled, numbers=own.numbers), other)
        return result

    assert torch.autograd.gradcheck(value, own.pooled)


def test_every_other_image_is_a_negative_equally_often_and_never_the_image_itself(plain, make_outputs) -> None:
    loss, own, _ = made(plain, make_outputs, negatives=30000)
    choices = loss._choices(own.numbers)
    assert torch.equal(choices[:, 0], own.numbers)
    for number, drawn in zip(own.numbers.tolist(), choices[:, 1:], strict=True):
        counts = torch.bincount(drawn, minlength=IMAGES)
        assert counts[number] == 0
        expected = 30000 / (IMAGES - 1)
        others = torch.tensor([count for place, count in enumerate(counts.tolist()) if place != number])
        assert (others - expected).abs().max() < 5 * math.sqrt(expected)


def test_the_memory_starts_as_published(plain) -> None:
    torch.manual_seed(0)
    loss = CRD(plain(), plain())
    loss.expect_images(2000)
    for bank in (loss.student_bank, loss.teacher_bank):
        assert bank.shape == (2000, 128)
        assert bank.abs().max() <= 1 / math.sqrt(128 / 3)
        assert float(bank.norm(dim=1).mean()) == pytest.approx(1, abs=0.01)
    assert not torch.equal(loss.student_bank, loss.teacher_bank)
    assert loss.partitions.tolist() == [0, 0]
    (built,) = build_losses(parse_methods("crd"), plain(), plain())
    assert built.weight == 0.8
    assert (built.module.negatives, built.module.temperature, built.module.momentum) == (16384, 0.07, 0.5)


def test_only_training_moves_the_memory(plain, make_outputs) -> None:
    loss, own, other = made(plain, make_outputs)
    before = {name: buffer.clone() for name, buffer in loss.named_buffers()}
    loss.eval()
    torch.manual_seed(5)
    value = loss(own, other)
    assert all(torch.equal(buffer, before[name]) for name, buffer in loss.named_buffers())
    loss.train()
    torch.manual_seed(5)
    torch.testing.assert_close(loss(own, other), value)  # both estimate Z from this very batch
    rows = [7, 0, 3]
    for bank, was in ((loss.student_bank, before["student_bank"]), (loss.teacher_bank, before["teacher_bank"])):
        changed = (bank != was).any(dim=1).nonzero().flatten().tolist()
        assert changed == sorted(rows)
        torch.testing.assert_close(bank[rows].norm(dim=1), torch.ones(3, dtype=torch.float64))
    constants = loss.partitions.clone()
    loss(own, other)
    assert torch.equal(loss.partitions, constants)


def test_a_state_goes_on_exactly(plain, make_outputs) -> None:
    """Memory and constants are loaded into a loss that expects as many images, and the next step is the same."""
    loss, own, other = made(plain, make_outputs)
    loss(own, other)
    again = made(plain, make_outputs, seed=9)[0]
    assert not torch.equal(again.student_bank, loss.student_bank)
    again.load_state_dict(copy.deepcopy(loss.state_dict()))
    values = []
    for each in (loss, again, copy.deepcopy(again)):
        torch.manual_seed(1)
        values.append(each(own, other).item())
    assert values[0] == values[1] == values[2]
    for name, buffer in loss.named_buffers():
        assert torch.equal(buffer, dict(again.named_buffers())[name])


def test_measuring_gradients_leaves_memory_and_constants_as_they_were() -> None:
    torch.manual_seed(0)
    teacher, student = create("resnet8", 5, input_size=(16, 16)), create("resnet8", 5, input_size=(16, 16))
    distiller = Distiller(teacher, student, "crd(negatives=20)").train()
    distiller.expect_images(12)
    images, target, numbers = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 3]), torch.tensor([3, 11, 5, 0])
    for first in (True, False):
        state = copy.deepcopy(distiller.state_dict())
        assert (state["losses.0.partitions"] == 0).all() == first
        norms = distiller.gradient_norms(images, target, numbers)
        assert norms["crd"] > 0
        assert all(torch.equal(value, state[name]) for name, value in distiller.state_dict().items())
        distiller(images, target, numbers)["total"].backward()
        assert not torch.equal(distiller.state_dict()["losses.0.student_bank"], state["losses.0.student_bank"])


def test_learning_finds_the_image_among_the_others() -> None:
    """Embeddings of vectors that are one vector seen twice: after some steps each is told from the rest."""
    facts = ModelFacts("m", 3, (8, 8), (), 12)
    loss = CRD(facts, facts, features=8, negatives=64)
    loss.expect_images(20)
    vectors, turn = torch.randn(20, 12), torch.linalg.qr(torch.randn(12, 12)).Q
    own, other = Outputs(torch.zeros(20, 3), vectors), Outputs(torch.zeros(20, 3), vectors @ turn)
    own.numbers = torch.arange(20)
    optimiser = torch.optim.Adam(loss.parameters(), lr=0.01)
    for _ in range(150):
        optimiser.zero_grad()
        loss(own, other).backward()
        optimiser.step()
    found = (loss.student_bank @ loss.teacher_bank.T).argmax(dim=1)
    assert float((found == torch.arange(20)).float().mean()) > 0.9


def test_half_precision_is_promoted_and_targets_of_any_kind_are_ignored(plain, make_outputs) -> None:
    student = plain()
    loss = CRD(student, student, negatives=8)
    loss.expect_images(IMAGES)
    loss.eval()
    own = make_outputs(student, loss.student_request, dtype=torch.float32)
    other = make_outputs(student, loss.teacher_request, seed=1, dtype=torch.float32)
    own.numbers = other.numbers = torch.tensor([1, 2, 8])
    values = []
    for target in (None, torch.tensor([0, 1, 2]), torch.rand(3, 5)):
        torch.manual_seed(0)
        values.append(loss(own, other, target))
    assert values[0] == values[1] == values[2]
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        half = loss(Outputs(own.logits, own.pooled.bfloat16(), numbers=own.numbers), other)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, values[0], rtol=0.05, atol=0)


def test_what_cannot_be_remembered_is_refused_by_name(plain, make_outputs, detector) -> None:
    loss, own, other = made(plain, make_outputs)
    own.numbers = None
    with pytest.raises(UserError, match="Pass `numbers`"):
        loss(own, other)
    for numbers, named in (([0, 1, 9], "number 9"), ([0, -1, 2], "number -1")):
        own.numbers = torch.tensor(numbers)
        with pytest.raises(UserError, match=rf"{named}, and expects 9 images, numbered 0 to 8"):
            loss(own, other)
    own.numbers = torch.tensor([0, 1])
    with pytest.raises(UserError, match=r"\(2,\) numbers for 3 images"):
        loss(own, other)
    with pytest.raises(UserError, match=r"distiller\.expect_images"):
        CRD(plain(), plain())(make_outputs(plain(), loss.student_request), other)
    with pytest.raises(UserError, match="at least 2; there are 1"):
        loss.expect_images(1)
    with pytest.raises(UserError, match="crd compares what classifiers say"):
        CRD(detector(), detector())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("negatives=0", "negatives is 0"),
        ("features=0", "features is 0"),
        ("temperature=0.0", "temperature is 0"),
        ("momentum=1.5", "momentum is 1.5"),
        ("other_classes=True", "no option 'other_classes'"),
    ],
)
def test_options_are_checked(option: str, message: str, plain) -> None:
    with pytest.raises(UserError, match=f"crd.*{message}"):
        build_losses(parse_methods(f"crd({option})"), plain(), plain())
