import itertools
from dataclasses import replace
from math import log2

import pytest

from limbeck.errors import UserError
from limbeck.losses.pairing import (
    at_strides,
    by_stride,
    counterparts,
    equal_stride,
    evenly,
    first_and_last,
    is_neck,
    is_plain,
    named,
    stages,
    stride_notes,
)
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


def necks(*strides: int, kind: str = "fpn") -> tuple[Level, ...]:
    return levels(*strides, kind=kind)


def strides(pairs) -> list[tuple[int, int]]:
    return [(s.stride, t.stride) for s, t in pairs]


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [
        ((8, 16, 32), (4, 8, 16, 32, 64), [8, 16, 32]),
        ((8, 16, 32, 64), (4, 8, 16, 32, 64), [8, 16, 32, 64]),
        ((4, 8, 16, 32, 64), (8, 16, 32, 64, 128), [8, 16, 32, 64]),
        ((16, 32), (8, 16, 32), [16, 32]),
        ((8, 16, 32), (32,), [32]),
        ((32, 16, 8), (8, 16, 32), [8, 16, 32]),
    ],
)
@pytest.mark.parametrize("kinds", [("fpn", "encoder"), ("encoder", "fpn"), ("fpn", "stage"), ("block", "encoder")])
def test_necks_of_detectors_meet_at_equal_strides_from_fine_to_coarse(own, other, expected, kinds) -> None:
    student, teacher = necks(*own, kind=kinds[0]), necks(*other, kind=kinds[1])
    assert strides(at_strides(student, teacher)) == [(stride, stride) for stride in expected]
    assert strides(counterparts(student, teacher, 4, stages)) == [(stride, stride) for stride in expected]


def test_of_blocks_the_last_stands_for_their_stride() -> None:
    assert indices(counterparts(blocks(12), necks(8, 16, 32), 4)) == [(11, 1)]
    assert indices(counterparts(necks(4, 8, 16, 32, kind="encoder"), blocks(12), 4)) == [(2, 11)]


def test_necks_without_a_shared_stride_meet_at_the_nearest() -> None:
    assert strides(at_strides(necks(8, 16, 32), necks(10, 40))) == [(8, 10), (32, 40)]
    assert strides(at_strides(levels(14, 14, 14, kind="block"), necks(8, 16, 32))) == [(14, 16)]


def test_blocks_before_a_neck_are_not_paired(detector) -> None:
    both = (*levels(16, 16, kind="block"), *necks(8, 32, kind="encoder"))
    assert strides(at_strides(both, necks(8, 16, 32))) == [(8, 8), (32, 32)]
    assert strides(at_strides(necks(16), both)) == [(16, 32)]
    facts = replace(detector(), levels=both)
    assert stride_notes("pkd", facts, detector(), [("l0", "p0"), ("l1", "p2")]) == (
        "pkd: teacher p1 (stride 16) left out, since the student has no map of that stride.",
    )


def test_pyramids_and_plain_transformers_of_classifiers_keep_their_rules() -> None:
    assert counterparts(levels(2, 4, 8), levels(1, 2, 4), 4) == by_stride(levels(2, 4, 8), levels(1, 2, 4))
    assert counterparts(levels(2, 4, 8), levels(1, 2, 4), 4, stages) == stages(levels(2, 4, 8), levels(1, 2, 4))
    assert indices(counterparts(levels(4, 8, 16), blocks(6), 2)) == [(1, 2), (2, 5)]
    assert indices(counterparts(blocks(6), blocks(12), 4)) == [(0, 2), (2, 5), (3, 8), (5, 11)]


def test_what_pairing_by_stride_leaves_out_is_said(detector, pyramid) -> None:
    small, large = detector("small", (8, 16, 32)), detector("large", (4, 8, 16, 32, 64), kind="encoder")
    pairs = [("p0", "p1"), ("p1", "p2"), ("p2", "p3")]
    assert stride_notes("pkd", small, large, pairs) == (
        "pkd: teacher p0 (stride 4), p4 (stride 64) left out, since the student has no map of that stride.",
    )
    assert stride_notes("pkd", large, small, [p[::-1] for p in pairs])[0].startswith("pkd: student p0 (stride 4), p4")
    # What a user pairs by hand is not left out.
    assert "p0" not in stride_notes("pkd", small, large, [*pairs, ("p0", "p0")])[0]
    assert stride_notes("pkd", small, small, [("p0", "p0")]) == ()
    assert stride_notes("pkd", pyramid(), pyramid(grids=(7, 4, 2)), [("stages.0", "stages.0")]) == ()
    (note,) = stride_notes("pkd", small, detector("odd", (10, 40)), [("p0", "p0"), ("p2", "p1")])
    assert note == "pkd: the student has strides 8, 16, 32, the teacher 10, 40; the nearest are paired."
    assert is_neck(small.levels)
    assert not is_neck(blocks(3))


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
