"""Every check of "is it working?" on made-up records: what it finds, and what it leaves alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import nn
from torchvision.ops import StochasticDepth

from limbeck.training.evidence import Evidence, Facts, Finding, finding_of
from limbeck.training.records import Records
from limbeck.training.watch import look
from limbeck.training.watcher import Watcher, drop_path_of

FACTS = Facts(weights={"task": 1.0, "kd": 1.0, "vitkd": 1.0}, epochs=10, chance=0.1)


def rows(kind: str, values: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"kind": kind, "epoch": epoch, "step": 10 * epoch, **of} for epoch, of in enumerate(values)]


def evidence(*records: list[dict[str, Any]], facts: Facts = FACTS, epoch: int = 9) -> Evidence:
    return Evidence.from_records(facts, epoch, [row for of in records for row in of])


def names(seen: Evidence, known: Sequence[Finding] = ()) -> list[tuple[str, str, str]]:
    return [(finding.severity, finding.name, finding.subject) for finding in look(seen, known)]


def pulls(task: float, kd: float, vitkd: float, **more: float) -> dict[str, float]:
    return {"task": task, "kd": kd, "vitkd": vitkd, **more}


@pytest.mark.parametrize(
    ("measured", "found"),
    [
        ([pulls(1, 1, 1)] * 3, []),
        ([pulls(1, 2, 0.02)] * 3, []),
        ([pulls(1, 1000, 1)] * 3, [("warning", "term_dominates", "kd")]),
        ([pulls(1, 60, 1)] * 3, [("note", "term_dominates", "kd")]),
        ([pulls(1, 1, 0.001)] * 3, [("warning", "term_vanishes", "vitkd")]),
        ([pulls(0.0005, 1, 1)] * 3, [("warning", "term_vanishes", "task")]),
        ([pulls(1000, 2, 2)] * 3, [("warning", "term_dominates", "task")]),
        # The labels are nearly everything because something else is nothing: said once, of what is nothing.
        ([pulls(1000, 5, 0.001)] * 3, [("warning", "term_vanishes", "vitkd")]),
        # It was not so from the beginning: the other terms have been learned.
        ([pulls(1, 10, 1), pulls(1, 1000, 1)], []),
        ([pulls(1, 1, 1), pulls(1, 1, 0.0001)], []),
        # Once may be chance.
        ([pulls(1, 1000, 1)], []),
    ],
)
def test_shares_of_the_pull(measured: list[dict[str, float]], found: list[tuple[str, str, str]]) -> None:
    assert names(evidence(rows("gradients", measured))) == found


def test_the_labels_small_share_beside_one_method_is_as_published() -> None:
    alone = replace(FACTS, weights={"task": 0.1, "kd": 0.9})
    assert names(evidence(rows("gradients", [{"task": 1.0, "kd": 40.0}] * 3), facts=alone)) == []


def test_where_the_labels_prevail_the_small_term_is_raised_first() -> None:
    alone = replace(FACTS, weights={"task": 0.1, "kd": 0.0009})
    (note,) = look(evidence(rows("gradients", [{"task": 1.0, "kd": 0.04}] * 3), facts=alone))
    assert (note.severity, note.name) == ("note", "term_dominates")
    assert "kd (at most 3.8 %, weight 0.0009) hardly counts" in note.words
    assert note.remedy.startswith("Raise the weight of kd: kd(weight=...), or lower --task_weight")
    (note,) = look(evidence(rows("gradients", [pulls(97, 1, 2)] * 3)))
    assert "kd (at most 1 %, weight 1) and vitkd (at most 2 %, weight 1) hardly count." in note.words
    assert note.remedy.startswith("Raise the weight of kd")
    heavy = replace(FACTS, weights={"task": 1000.0, "kd": 1.0, "vitkd": 1.0})
    (fault,) = look(evidence(rows("gradients", [pulls(1000, 2, 2)] * 3), facts=heavy))
    assert fault.remedy.startswith("Lower --task_weight, or raise")


@pytest.mark.parametrize(
    ("measured", "subject", "remedy"),
    [
        (pulls(0.05, 97, 2.95), "task", "Lower the weight of kd: kd(weight=...), or raise --task_weight"),
        (pulls(0.005, 97, 2.995), "task", "Lower the weight of kd: kd(weight=...), or raise --task_weight"),
        (pulls(2.95, 97, 0.05), "vitkd", "Lower the weight of kd: kd(weight=...), or raise the weight of vitkd"),
        # A thousandth of a fair share vanishes beside the labels too; kd's share is as published.
        (pulls(3, 97, 0.003), "vitkd", "Raise the weight of vitkd: vitkd(weight=...), or choose"),
        (pulls(97, 2.95, 0.05), "vitkd", "Raise the weight of vitkd: vitkd(weight=...), or choose"),
        (pulls(0.0005, 1, 1), "task", "Raise --task_weight, or choose"),
    ],
)
def test_a_vanishing_term_is_blamed_only_where_it_is_itself_too_weak(
    measured: dict[str, float], subject: str, remedy: str
) -> None:
    found = [finding for finding in look(evidence(rows("gradients", [measured] * 3))) if finding.severity == "warning"]
    assert [(finding.name, finding.subject) for finding in found] == [("term_vanishes", subject)]
    assert found[0].remedy.startswith(remedy)


def test_terms_in_their_warm_up_are_judged_at_their_full_weight_and_not_at_all_at_zero() -> None:
    silent = [pulls(1, 1, 0.0, **{"weight/vitkd": 0.0})] * 4
    assert names(evidence(rows("gradients", silent))) == []
    rising = [pulls(1, 1, 0.001, **{"weight/vitkd": 0.001})] * 4
    assert names(evidence(rows("gradients", rising))) == []


def test_chosen_shares_are_not_complained_about_unless_they_cannot_be_kept() -> None:
    chosen = replace(FACTS, chosen={"kd": 0.997, "vitkd": 0.0005})
    assert names(evidence(rows("gradients", [pulls(2.5, 997, 0.5)] * 3), facts=chosen)) == []
    bound = rows("gradients", [pulls(1, 1, 1e-4, **{"weight/vitkd": 1e4})] * 3)
    assert names(evidence(bound, facts=chosen)) == [("warning", "balance_at_its_bound", "vitkd")]


def test_terms_whose_share_nobody_chose_are_judged_among_themselves() -> None:
    def found(measured: dict[str, float], *chosen: str) -> list[tuple[str, str, str]]:
        facts = replace(FACTS, chosen=dict.fromkeys(chosen, 0.3))
        return names(evidence(rows("gradients", [measured] * 3), facts=facts))

    assert found(pulls(1, 1e5, 1), "kd") == []
    assert found(pulls(1, 1e5, 0.0005), "kd") == [("warning", "term_vanishes", "vitkd")]
    assert found(pulls(1, 1e-5, 1000), "kd") == [("warning", "term_dominates", "vitkd")]
    assert found(pulls(1, 1e5, 1e-5), "kd", "vitkd") == []
    assert found(pulls(1, 1, 0), "kd", "vitkd") == [("warning", "term_vanishes", "vitkd")]


def test_only_the_beginning_shows_whether_terms_fight() -> None:
    def cosines(*values: float) -> Evidence:
        return evidence(rows("gradients", [pulls(1, 1, 1, **{"cosine/task|kd": value}) for value in values]))

    fight = [("warning", "gradients_fight", "task|kd")]
    assert names(cosines(-0.9, -0.5)) == fight
    assert names(cosines(-0.9, -0.5, -0.4, 0.9)) == fight
    assert names(cosines(-0.9)) == [], "once may be chance"
    assert names(cosines(0.9, 0.5, 0.1, -0.9, -0.9)) == [], "near a minimum gradients cancel"
    assert names(cosines(-0.2, -0.9, -0.9)) == []
    single = replace(cosines(-0.9), facts=replace(FACTS, epochs=1))
    assert names(single) == [("note", "gradients_fight", "task|kd")], "there will not be a second measurement"


def test_a_frozen_student_is_seen_in_three_ways_and_explains_the_rest() -> None:
    frozen = [("warning", "student_frozen", "")]
    still = rows("val", [{"agreement": 0.1}] * 6) + rows("train", [{"loss/task": 2.3, "loss/kd": 1.0}] * 6)
    zero = rows("gradients", [pulls(0, 0, 0, **{f"weight/{name}": 1.0 for name in FACTS.weights})])
    assert names(evidence(still, facts=replace(FACTS, trainable=False))) == frozen
    assert names(evidence(still, zero)) == frozen
    assert names(evidence(still, rows("watch", [{"parameters": 2.0}, {"parameters": 2.0}]))) == frozen
    assert names(evidence(zero, rows("watch", [{"parameters": 2.0}, {"parameters": 2.0}]))) == frozen
    assert names(evidence(zero, rows("watch", [{"parameters": 2.0}, {"parameters": 2.1}]))) == [], (
        "zeros may be underflow"
    )
    assert names(evidence(rows("watch", [{"parameters": 2.0}, {"parameters": 2.1}]))) == []


def test_stochastic_depth_counts_only_beside_losses_that_compare_blocks() -> None:
    both = replace(FACTS, drop_path=0.1, matches_blocks=("vitkd",))
    assert names(evidence(facts=both)) == [("warning", "drop_path_with_blocks", "")]
    assert names(evidence(facts=replace(both, matches_blocks=()))) == []
    assert names(evidence(facts=replace(both, drop_path=0.0))) == []


@pytest.mark.parametrize(
    ("agreements", "found"),
    [
        ([0.3, 0.5, 0.7, 0.8], []),
        ([0.1, 0.12, 0.15], ["agreement_near_chance"]),
        ([0.1, 0.12], []),
        ([0.5, 0.5, 0.51, 0.5], ["agreement_not_rising"]),
        ([0.95, 0.95, 0.95, 0.95], []),
        ([0.5, 0.6, 0.55, 0.5], []),
        ([0.885, 0.89, 0.894, 0.897], []),
        ([0.885, 0.885, 0.89, 0.889], ["agreement_not_rising"]),
    ],
)
def test_agreement(agreements: list[float], found: list[str]) -> None:
    seen = evidence(rows("val", [{"agreement": value} for value in agreements]))
    assert [finding.name for finding in look(seen)] == found
    watched = evidence(rows("watch", [{"agreement": value, "chance": 0.1} for value in agreements]))
    assert [finding.name for finding in look(watched)] == found, "without validation images, the watched ones count"
    assert names(replace(seen, facts=replace(FACTS, has_teacher=False))) == []
    assert names(replace(seen, facts=replace(FACTS, epochs=1000))) == [], "a long run begins slowly"


def test_a_student_near_chance_may_go_on_while_it_rises() -> None:
    facts = replace(FACTS, chance=0.015)

    def found(*agreements: float, epoch: int) -> list[Finding]:
        return look(evidence(rows("val", [{"agreement": value} for value in agreements]), facts=facts, epoch=epoch))

    assert found(0.05, 0.08, 0.105, epoch=2) == []
    assert [finding.name for finding in found(0.05, 0.05, 0.055, epoch=2)] == ["agreement_near_chance"]
    assert [finding.name for finding in found(0.02, 0.08, 0.08, 0.08, epoch=3)] == ["agreement_near_chance"]
    (last,) = found(0.05, 0.08, 0.105, epoch=9)
    assert last.name == "agreement_near_chance" and last.remedy.startswith("It was still rising: train longer.")


def test_a_loss_at_its_floor_is_no_fault_and_what_is_not_finite_is_left_out() -> None:
    def found(losses: Sequence[float], agreements: Sequence[float] = ()) -> list[Finding]:
        train = rows("train", [{"loss/task": value, "loss/kd": value} for value in losses])
        return look(evidence(train, rows("val", [{"agreement": value} for value in agreements])))

    assert found([0.01] * 4, [0.96] * 4) == [], "it agrees"
    assert found([0.01] * 4, [0.5, 0.55, 0.6, 0.65]) == [], "it comes to agree"
    assert [finding.name for finding in found([2.3] * 3, [0.5] * 3)] == ["loss_not_falling"]
    assert found([float("nan")] * 4) == []
    (stuck,) = found([float("nan"), 2.3, 2.3, float("inf"), 2.3])
    assert stuck.name == "loss_not_falling" and "2.3 at first, 2.3 now" in stuck.words


def test_a_loss_that_does_not_fall() -> None:
    def losses(*values: float, facts: Facts = FACTS) -> list[str]:
        train = rows("train", [{"loss/task": value, "loss/kd": 2.0, "loss/total": 9.0 - value} for value in values])
        return [finding.name for finding in look(evidence(train, facts=facts))]

    assert losses(2.3, 2.3, 2.3) == ["loss_not_falling"]
    assert losses(2.3, 2.5, 2.6) == ["loss_not_falling"]
    assert losses(2.3, 2.3) == []
    assert losses(2.3, 2.2, 2.1) == [], "one term is enough: with a warm-up the total may rise"
    assert losses(2.3, 2.3, 2.3, facts=replace(FACTS, warmup_epochs=5)) == []
    assert losses(2.3, 2.3, 2.3, facts=replace(FACTS, images_change=True)) == []


def test_features_that_part_are_worth_a_note() -> None:
    def similarity(*values: float) -> Evidence:
        return evidence(rows("watch", [{"cka/a|b": value} for value in values]))

    assert names(similarity(0.7, 0.65, 0.5)) == [("note", "features_part", "a|b")]
    assert names(similarity(0.5, 0.7, 0.6)) == []


def test_what_follows_from_a_wrong_teacher_is_not_said_and_nothing_is_said_twice() -> None:
    wrong = Finding("classes_shuffled", "warning", "", "")
    seen = evidence(
        rows("gradients", [pulls(1, 1000, 0.1, **{"cosine/task|kd": -0.9})] * 3), rows("val", [{"agreement": 0.1}] * 5)
    )
    assert ("warning", "term_dominates", "kd") in names(seen)
    assert ("warning", "term_dominates", "kd") not in names(seen, [wrong])
    assert "gradients_fight" not in [name for _, name, _ in names(seen, [wrong])]
    assert names(seen, look(seen)) == []


def test_a_watcher_says_and_writes_each_finding_once_also_after_a_resume(tmp_path: Path) -> None:
    said: list[str] = []
    given = [Finding("teacher_colours", "warning", "Red is blue.", "Exchange them.")]
    student = nn.Linear(2, 2)
    probed: list[int] = []

    def probe() -> dict[str, float]:
        probed.append(len(probed))
        return {"cka/a|b": float("nan"), "agreement": 0.5, "chance": 0.1}

    def watcher() -> Watcher:
        return Watcher(replace(FACTS, epochs=5), given=given, probe=probe, say=said.extend)

    records = Records(tmp_path / "metrics.jsonl")
    watcher().begin(records, 0)
    for epoch in range(2):
        watcher().end_epoch(records, epoch, 10 * (epoch + 1), student)
    assert said[0] == "Red is blue. Exchange them."
    assert len(said) == 2 and "did not change in a whole epoch" in said[1]
    resumed = Records(tmp_path / "metrics.jsonl", upto_step=20)
    watcher().begin(resumed, 20)
    with torch.no_grad():
        student.weight.add_(1.0)
    for epoch in range(2, 5):
        watcher().end_epoch(resumed, epoch, 10 * (epoch + 1), student)
    assert len(said) == 2
    assert [finding_of(row).name for row in resumed.of("finding")] == ["teacher_colours", "student_frozen"]
    assert len(probed) == 3, "after the first, the middle and the last epoch"
    assert [row["epoch"] for row in resumed.of("watch") if "agreement" in row] == [0, 2, 4]
    assert all("cka/a|b" not in row for row in resumed.rows), "what could not be measured is not written"


def test_stochastic_depth_is_seen_whatever_library_made_it() -> None:
    assert drop_path_of(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))) == 0
    assert drop_path_of(nn.Sequential(DropPath(0.1), nn.Sequential(DropPath(0.3)))) == 0.3
    assert drop_path_of(nn.Sequential(StochasticDepth(0.2, "row"))) == 0.2
