import itertools
from math import log2

import pytest

from limbeck.errors import UserError
from limbeck.losses.pairing import by_stride, equal_stride, evenly, first_and_last, is_plain, named, stages
from limbeck.outputs import Level


def levels(*strides: int, kind: str = "stage") -> tuple[Level, ...]:
    return tuple(Level(f"l{i}", 8, stride, (32 // stride, 32 // stride), kind) for i, stride in enumerate(strides))


def blocks(depth: int) -> tuple[Level, ...]:
    return levels(*[16] * depth, kind="block")


def indices(pairs) -> list[tuple[int, int]]:
    return [(int(s.name[1:]), int(t.name[1:])) for s, t in pairs]


def test_first_and_last_as_published() -> None:
    pairs = indices(first_and_last(blocks(12), blocks(24), 4, 4))
    assert pairs == [(0, 0), (1, 1), (2, 2), (3, 3), (8, 20), (9, 21), (10, 22), (11, 23)]
    assert indices(first_and_last(blocks(12), blocks(24), 2, 0)) == [(0, 0), (1, 1)]
    assert indices(first_and_last(blocks(12), blocks(24), 0, 1)) == [(11, 23)]


@pytest.mark.parametrize("own", range(1, 13))
@pytest.mark.parametrize("other", range(1, 13))
def test_shallow_models_pair_by_depth_without_repeats(own: int, other: int) -> None:
    pairs = indices(first_and_last(blocks(own), blocks(other), 4, 4))
    assert len(pairs) == min(own, other, 8)
    for column in zip(*pairs, strict=True):
        assert list(column) == sorted(set(column))
    assert pairs[-1] == (own - 1, other - 1)
    if len(pairs) > 1:
        assert pairs[0] == (0, 0)


def test_three_blocks_learn_from_first_middle_and_last() -> None:
    assert indices(first_and_last(blocks(3), blocks(25), 4, 4)) == [(0, 0), (1, 12), (2, 24)]


def test_by_stride_is_the_best_of_all_orderly_pairings() -> None:
    for own, other in [
        (levels(1, 2, 4), levels(1, 2, 4, 8)),
        (levels(4, 8, 16, 32), levels(2, 4, 4, 8, 16, 32)),
        (levels(2, 2, 4, 8, 8), levels(4, 16)),
        (levels(8), levels(1, 2, 4)),
    ]:
        pairs = by_stride(own, other)
        short, long = min(own, other, key=len), max(own, other, key=len)
        cost = sum(abs(log2(s.stride / t.stride)) for s, t in pairs)
        rivals = itertools.combinations(long, len(short))
        assert cost == pytest.approx(
            min(sum(abs(log2(a.stride / b.stride)) for a, b in zip(short, r, strict=True)) for r in rivals)
        )
        assert len(pairs) == len(short)
        for column in zip(*indices(pairs), strict=True):
            assert list(column) == sorted(set(column))


def test_by_stride_prefers_the_last_level_of_a_resolution() -> None:
    assert indices(by_stride(levels(4, 8), levels(4, 4, 8, 8))) == [(0, 1), (1, 3)]
    assert indices(by_stride(levels(4, 4, 8, 8), levels(4, 8))) == [(1, 0), (3, 1)]


def test_equal_stride_takes_the_deepest_level_of_each_shared_stride() -> None:
    assert indices(equal_stride(levels(2, 4, 8, 8), levels(1, 2, 4, 8))) == [(0, 1), (1, 2), (3, 3)]
    assert equal_stride(levels(2), levels(3)) == ()


def test_stages_go_in_order_whatever_their_strides() -> None:
    assert indices(stages(levels(2, 4, 8, 8), levels(1, 2, 4, 8))) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    with pytest.raises(UserError, match="2 levels and the teacher 1"):
        stages(levels(1, 2), levels(1))


def test_evenly_ends_with_the_last() -> None:
    assert [level.name for level in evenly(blocks(12), 4)] == ["l2", "l5", "l8", "l11"]
    assert [level.name for level in evenly(blocks(24), 3)] == ["l7", "l15", "l23"]
    assert evenly(blocks(3), 9) == blocks(3)
    for depth, count in itertools.product(range(1, 30), range(1, 30)):
        chosen = [int(level.name[1:]) for level in evenly(blocks(depth), count)]
        assert chosen == sorted(set(chosen))
        assert len(chosen) == min(depth, count)
        assert chosen[-1] == depth - 1


def test_plain_means_nothing_but_blocks() -> None:
    assert is_plain(blocks(2))
    assert not is_plain(levels(4))
    assert not is_plain(())


def test_named_pairs_are_checked(pyramid) -> None:
    facts = pyramid(preactivation=True)
    assert named(facts, facts, [("stages.0", "stages.1.pre")]) == (("stages.0", "stages.1.pre"),)
    with pytest.raises(UserError, match=r"cnn has no level 'stage\.0'. Did you mean 'stages\.0'"):
        named(facts, facts, [("stage.0", "stages.0")])
    with pytest.raises(UserError, match="each entry is"):
        named(facts, facts, [("stages.0", "stages.0", "stages.1")])
