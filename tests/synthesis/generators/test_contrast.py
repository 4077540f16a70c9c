"""CMI's contrast and its bank."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.outputs import Level, ModelFacts
from limbeck.synthesis.generators.contrast import FeatureBank, contrast_levels, info_nce


def unit(count: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)).double(), dim=1)


def test_equal_similarities_give_the_logarithm_of_their_number() -> None:
    same = torch.ones(1, 4).double() / 2
    loss = info_nce(same, same, same.expand(6, -1), 0.1)
    torch.testing.assert_close(loss, torch.tensor(math.log(7)).double())


def test_it_is_what_a_loop_over_pictures_gives() -> None:
    anchors, positives, negatives = unit(3, 0), unit(3, 1), unit(4, 2)
    total = 0.0
    for i in range(3):
        others = [*positives, *negatives]
        exponentials = [math.exp(float(anchors[i] @ other) / 0.2) for other in others]
        total -= math.log(exponentials[i] / sum(exponentials))
    torch.testing.assert_close(info_nce(anchors, positives, negatives, 0.2), torch.tensor(total / 3).double())


def test_without_earlier_pictures_those_of_the_batch_remain() -> None:
    anchors, positives = unit(3, 0), unit(3, 1)
    expected = F.cross_entropy(anchors @ positives.T / 0.1, torch.arange(3))
    torch.testing.assert_close(info_nce(anchors, positives, unit(0, 2)), expected)


def test_the_bank_keeps_the_newest() -> None:
    bank = FeatureBank(5, 1)
    bank.add(torch.tensor([[1.0], [2.0], [3.0]]))
    assert bank.draw(10).flatten().sort().values.tolist() == [1, 2, 3]
    bank.add(torch.tensor([[4.0], [5.0], [6.0], [7.0]]))
    assert bank.rows.flatten().sort().values.tolist() == [3, 4, 5, 6, 7]
    copy = FeatureBank(5, 1)
    copy.load_state_dict(bank.state_dict())
    for one in (bank, copy):
        one.add(torch.tensor([[8.0]]))
        assert one.rows.flatten().sort().values.tolist() == [4, 5, 6, 7, 8]
    bank.add(torch.arange(20.0)[:, None])
    assert bank.rows.flatten().sort().values.tolist() == [15, 16, 17, 18, 19]


def test_a_draw_from_the_bank_has_each_row_once() -> None:
    bank = FeatureBank(50, 1)
    bank.add(torch.arange(50.0)[:, None])
    torch.manual_seed(0)
    drawn = bank.draw(30).flatten().tolist()
    assert len(set(drawn)) == 30
    assert drawn != bank.draw(30).flatten().tolist()


def test_of_many_levels_four_are_contrasted_the_deepest_among_them() -> None:
    def facts(count: int) -> ModelFacts:
        return ModelFacts("any", 2, (8, 8), tuple(Level(str(i), 1, 1, (8, 8)) for i in range(count)), 1)

    assert contrast_levels(facts(12)) == ("2", "5", "8", "11")
    assert contrast_levels(facts(6)) == ("0", "2", "3", "5")
    assert contrast_levels(facts(3)) == ("0", "1", "2")
