from dataclasses import replace

import pytest
import torch
from torch import nn

from limbeck.detection import DetectionOutputs, Predictions, Tokens
from limbeck.errors import UserError
from limbeck.losses import SharedQueries, random_tokens, soft_prediction_loss
from limbeck.losses.class_names import foreground
from limbeck.losses.shared_queries import moved

SIZES = ((96, 64), (64, 96))


class Asked(nn.Module):
    """A model that answers about cells by looking them up, so that what it says depends on the cell alone."""

    def __init__(self, slots: int, layers: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.logits = nn.Parameter(2 * torch.randn(layers, 33, 12, 12, slots, generator=generator, dtype=torch.float64))
        self.boxes = nn.Parameter(torch.randn(layers, 33, 12, 12, 4, generator=generator, dtype=torch.float64))
        self.asked: list[Tokens] = []

    def read(self, tokens: Tokens) -> tuple[Predictions, ...]:
        self.asked.append(tokens)
        cell = (slice(None), tokens.strides, tokens.rows, tokens.columns)
        return tuple(map(Predictions, self.logits[cell], self.boxes[cell].sigmoid()))

    def outputs(self, tokens: Tokens) -> DetectionOutputs:
        answers = DetectionOutputs(
            (96, 96), SIZES, predictions=self.read(tokens), tokens=tokens, read_queries=self.read
        )
        self.asked.clear()
        return answers


@pytest.fixture
def facts(detector, encoder):
    return detector(scores="sigmoid", reads_queries=True, levels=encoder(8, 16, 32))


@pytest.fixture
def own_tokens() -> Tokens:
    return random_tokens(SIZES, (8, 16, 32), 5, "cpu")


def test_both_models_are_asked_the_same_and_compared_query_by_query(facts, own_tokens) -> None:
    student, teacher = Asked(4, 3, seed=0), Asked(4, 2, seed=1)
    torch.manual_seed(3)
    actual = SharedQueries(facts, facts, num_random=7)(student.outputs(own_tokens), teacher.outputs(own_tokens))
    assert student.asked[0] is own_tokens and student.asked[1] is teacher.asked[0]
    torch.manual_seed(3)
    drawn = random_tokens(SIZES, (8, 16, 32), 7, "cpu")
    expected = 0.0
    for tokens in (own_tokens, drawn):
        answer = teacher.read(tokens)[-1]
        for layer in student.read(tokens):
            flat = [x.flatten(0, 1) for x in (layer.logits, layer.boxes, answer.logits, answer.boxes)]
            weight = answer.logits.sigmoid().amax(-1).flatten()
            # of sigmoid heads the mean over the four classes
            expected += soft_prediction_loss(*flat, weight, "sigmoid", temperature=10.0, class_weight=0.25)
    torch.testing.assert_close(actual, expected)


def test_only_the_student_learns(facts, own_tokens) -> None:
    student, teacher = Asked(4, 2, seed=0), Asked(4, 2, seed=1)
    SharedQueries(facts, facts)(student.outputs(own_tokens), teacher.outputs(own_tokens)).backward()
    assert teacher.logits.grad is None and teacher.boxes.grad is None
    assert student.logits.grad.abs().sum() > 0 and student.boxes.grad.abs().sum() > 0


def test_zero_where_the_student_is_the_teacher_and_the_order_does_not_matter(facts, own_tokens) -> None:
    student, teacher = Asked(4, 1, seed=0), Asked(4, 1, seed=1)
    loss = SharedQueries(facts, facts, num_random=0)
    assert SharedQueries(facts, facts)(
        student.outputs(own_tokens), student.outputs(own_tokens)
    ).item() == pytest.approx(0)
    order = torch.randperm(5)
    moved = Tokens(*(x[:, order] for x in vars(own_tokens).values()))
    torch.testing.assert_close(
        loss(student.outputs(moved), teacher.outputs(moved)),
        loss(student.outputs(own_tokens), teacher.outputs(own_tokens)),
    )


def test_random_queries_are_new_at_every_step_and_repeat_with_the_seed(facts, own_tokens) -> None:
    student, teacher = Asked(4, 1, seed=0).outputs(own_tokens), Asked(4, 1, seed=1).outputs(own_tokens)
    loss = SharedQueries(facts, facts, num_random=20)
    torch.manual_seed(1)
    first, second = loss(student, teacher), loss(student, teacher)
    torch.manual_seed(1)
    assert loss(student, teacher) == first != second


def test_a_softmax_student_of_a_sigmoid_teacher(facts, own_tokens) -> None:
    softmax = replace(facts, scores="softmax")
    loss = SharedQueries(softmax, facts)
    assert loss.weights["class_weight"] == 1
    value = loss(Asked(5, 1, seed=0).outputs(own_tokens), Asked(4, 1, seed=1).outputs(own_tokens))
    assert torch.isfinite(value) and value > 0


def test_random_cells_are_even_over_the_images_own_area() -> None:
    size = (64, 40)
    tokens = random_tokens([size, (20, 20)], (16, 8, 32), 40_000, "cpu")
    cells, counts = torch.stack([tokens.strides[0], tokens.rows[0], tokens.columns[0]]).unique(
        dim=1, return_counts=True
    )
    assert cells.shape[1] == 8 * 5 + 4 * 2 + 2 * 1
    assert (counts / counts.float().mean()).sub(1).abs().max() < 0.2
    for stride, row, column in cells.T.tolist():
        assert (row + 1) * stride <= 64 and (column + 1) * stride <= 40
    # a map that is coarser than the image still has its one cell
    assert set(zip(*(x[1].tolist() for x in vars(tokens).values()), strict=True)) >= {(32, 0, 0), (16, 0, 0), (8, 1, 1)}


def test_what_is_requested(facts) -> None:
    loss = SharedQueries(facts, facts)
    assert loss.student_request.queries and not loss.student_request.predictions
    assert loss.teacher_request.queries and loss.teacher_request.predictions
    assert (loss.temperature, loss.num_random, loss.default_weight, loss.needs_labels) == (10.0, 300, 1.0, False)


def test_models_that_cannot_be_asked_are_refused(facts, detector, encoder) -> None:
    with pytest.raises(UserError, match=r"the teacher yolos cannot be asked.*query_kd"):
        SharedQueries(facts, detector("yolos"))
    with pytest.raises(UserError, match=r"the student yolos cannot be asked"):
        SharedQueries(detector("yolos"), facts)
    with pytest.raises(UserError, match=r"strides 8, 16, 32, the student odd from 14; none is shared.*query_kd"):
        SharedQueries(replace(facts, name="odd", levels=encoder(14)), facts)
    with pytest.raises(UserError, match="must not be negative"):
        SharedQueries(facts, facts, num_random=-1)


def test_extreme_logits_stay_finite(facts, own_tokens) -> None:
    student, teacher = Asked(4, 1, seed=0), Asked(4, 1, seed=1)
    with torch.no_grad():
        student.logits.mul_(1e4)
        teacher.logits.mul_(1e4)
    loss = SharedQueries(facts, facts)(student.outputs(own_tokens), teacher.outputs(own_tokens))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(student.logits.grad).all()
    assert foreground(teacher.logits, "sigmoid").amax() == 1


def test_a_student_without_one_of_the_strides_is_asked_on_the_shared_ones(facts, encoder, own_tokens) -> None:
    nano = replace(facts, name="nano", levels=encoder(16, 32))
    student, teacher = Asked(4, 1, seed=0), Asked(4, 1, seed=1)
    outputs = student.outputs(own_tokens), teacher.outputs(own_tokens)
    loss = SharedQueries(nano, facts, num_random=9)
    assert "no map of stride 8;" in loss.notes[0] and "at stride 16, 32," in loss.notes[0]
    loss(*outputs)
    for mine, its in zip(student.asked, teacher.asked, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(vars(mine).values(), vars(its).values(), strict=True))
        assert set(mine.strides.unique().tolist()) <= {16, 32}
    large = SharedQueries(facts, nano)
    assert (large.strides, large.moves, large.notes) == ((16, 32), False, ())


def test_a_moved_cell_is_where_it_was(own_tokens) -> None:
    kept = moved(own_tokens, (8, 16, 32))
    assert all(torch.equal(a, b) for a, b in zip(vars(kept).values(), vars(own_tokens).values(), strict=True))
    coarse = moved(own_tokens, (16, 32))
    for name in ("rows", "columns"):
        middle = (getattr(own_tokens, name) + 0.5) * own_tokens.strides
        start = getattr(coarse, name) * coarse.strides
        assert ((start <= middle) & (middle < start + coarse.strides)).all()
