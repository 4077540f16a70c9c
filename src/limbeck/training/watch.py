"""Is it working? What a run's own records say of common faults, in plain words, with the remedy.

Every check is a pure function of the `Evidence` so far. `limbeck.training.watcher` gathers that evidence and says what is found.

A *warning* is a fault that spoils the run; a *note* is worth knowing and may be as it should. A healthy run has no warning, so
the thresholds are wide, and what is noisy has to be seen more than once. All of them are below, with their reasons.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from limbeck.gradients import TASK
from limbeck.training.balance import BOUND
from limbeck.training.evidence import Evidence, Finding, Severity

DOMINATES = 0.99
"""A term's share of the pull, from the first measurement on, above which it drowns the others. Published `kd` weights give
kd 95 to 98 % beside the labels; a term of a fair share (over 9 %) that is weighted 1000 times too much is above 99 %."""

PREVAILS = 0.95
"""The same for a note; said of the labels, and of a term that leaves other distillation terms less than this."""

VANISHES = 0.001
"""A term's share of the pull, from the first measurement on, below which it does nothing. The smallest share that a pair of
published weights gave in our own runs is 0.4 %; a term of up to half the pull that is weighted 1000 times too little is below."""

FAIR = 0.01
"""A vanishing term's share of what another one leaves, from which on that other one is to blame: alone, this one would count."""

FIGHTS = -0.3
"""Cosine of two gradients, in each of the first measurements, below which one term undoes the other. In healthy runs it began
between -0.1 and 0.95. Only the beginning counts: at any minimum of the total the terms' gradients cancel, so their cosines
become negative late in training by necessity."""

FIRST = 3
"""How many measurements the beginning is; the second is the first that may be judged, but in a run of one epoch."""

NEAR_CHANCE = 0.1
"""Agreement with the teacher beyond chance, (a - c) / (1 - c), below which nothing has been learned from it, where c is what
always giving the teacher's commonest answer would reach. The same bound as for the teacher itself."""

STILL_RISING = 0.01
"""By how much agreement must have risen within three measurements for a student near chance to be left until the last epoch:
twice the standard error of 3 % on a thousand images. More noise than that delays the finding, and only until then."""

NOT_RISING = 0.02
"""By how much the best agreement must exceed the first within four measurements, where it is not above 90 % already: 2 points
are twice what chance does on a thousand images. Where less is missing to begin with, a tenth of that is enough."""

ALIKE = 0.9

NOT_FALLING = 0.01
"""Share of its first epoch's mean by which at least one term must have fallen after three epochs (and the warm-up)."""

CKA_DROP = 0.1
"""By how much the similarity of two levels may fall, first to last measurement; with 256 images its own error is about 0.02."""

EARLY = 0.1
"""Share of the epochs after which agreement is judged; long runs begin slowly."""


def frozen_student(evidence: Evidence) -> list[Finding]:
    """No parameter may change, none did from one epoch's end to the next, or no term has a gradient."""
    remedy = (
        "Load the student so that its parameters require gradients and its forward pass does not detach its outputs."
    )
    if not evidence.facts.trainable:
        words = "The student is frozen: none of its parameters requires a gradient, so it learns nothing."
        return [Finding("student_frozen", "warning", words, remedy)]
    norms = [row["parameters"] for row in evidence.watch if "parameters" in row]
    # Gradients may underflow to zero in half precision; a student whose parameters move is not frozen.
    moves = any(before != after for before, after in pairwise(norms))
    for row in () if moves else evidence.gradients:
        active = [name for name in evidence.facts.weights if row.get(f"weight/{name}", 0.0) > 0]
        if active and all(row.get(name) == 0 for name in active):
            words = "The student is frozen: no term of the loss has a gradient with respect to its parameters."
            return [Finding("student_frozen", "warning", words, remedy)]
    if any(before == after for before, after in pairwise(norms)):
        words = "The student is frozen: its parameters did not change in a whole epoch."
        return [Finding("student_frozen", "warning", words, f"Check the learning rate. {remedy}")]
    return []


def drop_path_with_blocks(evidence: Evidence) -> list[Finding]:
    """Stochastic depth in the student while its blocks are compared one by one."""
    facts = evidence.facts
    if not (facts.drop_path > 0 and facts.matches_blocks):
        return []
    words = (
        f"The student drops its blocks at random (stochastic depth, rate {facts.drop_path:g}), and "
        f"{_listed(facts.matches_blocks)} compare{'s' * (len(facts.matches_blocks) == 1)} them with the teacher's, which is "
        "another thing at every step."
    )
    return [Finding("drop_path_with_blocks", "warning", words, "Use --drop_path 0, or a loss on logits.")]


def drowning(evidence: Evidence) -> list[Finding]:
    """One term is nearly all of the pull, from the first measurement on."""
    weights = evidence.facts.weights
    shares = [share for share in evidence.pulls(without=evidence.facts.chosen) if len(share) > 1]
    if len(shares) < evidence.least:
        return []
    for name in weights:
        least = min(share.get(name, 0.0) for share in shares)
        others = [other for other in shares[-1] if other != name]
        severity: Severity = "warning" if least > DOMINATES else "note"
        # The labels' small share beside one method is how most methods were published.
        if least <= PREVAILS or (severity == "note" and others == [TASK]):
            continue
        most = {other: max(share.get(other, 0.0) for share in shares) for other in others}
        if name == TASK:
            told = [f"{other} (at most {_percent(most[other])}, weight {weights[other]:g})" for other in others]
            ways = [_change("raise", min(most, key=most.__getitem__)), _change("lower", TASK)]
            # No method was published with a larger weight of the labels than 1.
            ways = ways[::-1] if weights[TASK] > 1 else ways
        else:
            told, ways = [_term(other) for other in others], [_change("lower", name)]
        words = (
            f"{_term(name)} makes up at least {_percent(least)} of {_whole(evidence)} at every measurement, so "
            f"{_listed(told)} hardly count{'s' if len(others) == 1 else ''}."
        )
        return [Finding("term_dominates", severity, _sentence(words), _advice(*ways), name)]
    return []


def vanishing(evidence: Evidence) -> list[Finding]:
    """Terms that hardly pull at all, from the first measurement on."""
    chosen, found = evidence.facts.chosen, []
    shares, left = evidence.pulls(), evidence.pulls(without=evidence.facts.chosen)
    for name, weight in evidence.facts.weights.items():
        own = [share[name] for share in shares if name in share]
        if not weight > 0 or len(own) < evidence.least:
            continue
        ways = [_change("raise", name)]
        if max(own) == 0:
            words = f"{_term(name)} does not reach the student: its gradient is zero."
        elif name not in chosen and (most := max(share.get(name, 0.0) for share in left)) < VANISHES:
            words = f"{_term(name)} never makes up more than {_percent(most)} of {_whole(evidence)}: it does nothing."
            if culprit := _culprit(evidence, name):
                words = f"{words[:-1]} beside {_term(culprit)}."
                ways = [_change("lower", culprit), *ways]
        else:
            continue
        found.append(Finding("term_vanishes", "warning", _sentence(words), _advice(*ways), name))
    return found


def _culprit(evidence: Evidence, name: str) -> str | None:
    """The term that drowns a vanishing one, which would count without it; None where the vanishing one itself is too weak."""
    facts = evidence.facts
    shares = evidence.pulls(without=facts.chosen)
    least = {other: min(share.get(other, 0.0) for share in shares) for other in facts.weights if other != name}
    largest = max(least, key=least.__getitem__)
    if least[largest] <= PREVAILS or (largest == TASK and facts.weights[TASK] <= 1):
        return None
    rest = evidence.pulls(without=[*facts.chosen, largest])
    fair = max(share.get(name, 0.0) for share in rest) >= FAIR
    return largest if fair or name == TASK else None


def unkept_shares(evidence: Evidence) -> list[Finding]:
    """A term's weight was raised as far as it may be, and still its share is not what was chosen."""
    facts, found = evidence.facts, []
    for name in facts.chosen if evidence.gradients else ():
        weight = evidence.gradients[-1].get(f"weight/{name}", 0.0)
        if weight >= 0.999 * BOUND * facts.weights[name]:
            words = (
                f"{name} was to have {_percent(facts.chosen[name])} of the pull, and its weight is at the bound, {BOUND:g} times "
                "what it was: hardly anything of it reaches the student."
            )
            remedy = "Leave it out, or give it other levels."
            found.append(Finding("balance_at_its_bound", "warning", words, remedy, name))
    return found


def fighting(evidence: Evidence) -> list[Finding]:
    """Two terms that pull in opposite directions from the beginning."""
    found = []
    for (a, b), cosines in evidence.cosines().items():
        first = cosines[:FIRST]
        if len(first) >= evidence.least and max(first) < FIGHTS:
            words = (
                f"{_term(a)} and {_term(b)} pull against each other: the cosine of their gradients was "
                f"{', '.join(f'{cosine:.2f}' for cosine in first)} at the first measurement{'s' * (len(first) > 1)} "
                "(-1 is the opposite direction)."
            )
            remedy = "Leave one of them out, or see whether the teacher's answers contradict the labels."
            severity: Severity = "warning" if len(first) > 1 else "note"
            found.append(Finding("gradients_fight", severity, _sentence(words), remedy, f"{a}|{b}"))
    return found


def disagreement(evidence: Evidence) -> list[Finding]:
    """Student and teacher agree no more than by chance, or no more than at first."""
    facts, measured = evidence.facts, evidence.agreements()
    if (
        not facts.has_teacher
        or len(measured) < FIRST
        or evidence.epoch + 1 < max(EARLY * facts.epochs, facts.warmup_epochs)
    ):
        return []
    last, chance = measured[-1]
    values = [value for value, _ in measured]
    if chance < 1 and (last - chance) / (1 - chance) < NEAR_CHANCE:
        rises = last - values[-FIRST] > STILL_RISING
        if rises and evidence.epoch + 1 < facts.epochs:
            return []
        words = (
            f"Student and teacher give the same answer to {_percent(last)} of the images; always giving the teacher's commonest "
            f"answer would reach {_percent(chance)}."
        )
        remedy = "Check the teacher's accuracy and the learning rate. Without labels, add kd: features alone teach no classes."
        if rises:
            remedy = f"It was still rising: train longer. {remedy}"
        return [Finding("agreement_near_chance", "warning", words, remedy)]
    if len(values) > FIRST and not _rise(values) and last < ALIKE:
        words = (
            f"Student and teacher do not grow alike: they gave the same answer to {_percent(values[0])} of the images at first, "
            f"and to {_percent(last)} now."
        )
        remedy = "Check the learning rate, and give the terms that compare answers (kd, nkd, ...) more weight."
        return [Finding("agreement_not_rising", "warning", words, remedy)]
    return []


def stuck(evidence: Evidence) -> list[Finding]:
    """No term of the loss has fallen."""
    facts, losses = evidence.facts, evidence.epoch_losses()
    long = {name: values for name, values in losses.items() if len(values) >= max(3, facts.warmup_epochs + 1)}
    if facts.images_change or not long or len(long) < len(losses):
        return []
    # Losses may begin at their floor: a student that has learned, or does, is not stuck.
    agreements = [value for value, _ in evidence.agreements()] if facts.has_teacher else []
    if agreements and (agreements[-1] >= ALIKE or _rise(agreements)):
        return []
    if any(values[-1] < values[0] - NOT_FALLING * abs(values[0]) for values in long.values()):
        return []
    told = "; ".join(f"{_term(name)} {values[0]:.4g} at first, {values[-1]:.4g} now" for name, values in long.items())
    words = f"The loss does not fall: mean over the epoch, {told}."
    return [
        Finding("loss_not_falling", "warning", words, "Change the learning rate: try a tenth of it, then ten times.")
    ]


def diverging_features(evidence: Evidence) -> list[Finding]:
    """The features of a pair of levels become less alike while the student learns from the teacher."""
    keys = dict.fromkeys(key for row in evidence.watch for key in row if key.startswith("cka/"))
    found = []
    for key in keys if evidence.facts.has_teacher else ():
        values = [row[key] for row in evidence.watch if key in row]
        if len(values) > 1 and values[-1] < values[0] - CKA_DROP:
            levels = key.removeprefix("cka/").replace("|", " and the teacher's ")
            words = (
                f"The features of the student's {levels} become less alike: their similarity (CKA) fell from {values[0]:.2f} to "
                f"{values[-1]:.2f}."
            )
            remedy = "If a loss is meant to match them, raise its weight or name other levels."
            found.append(Finding("features_part", "note", words, remedy, key.removeprefix("cka/")))
    return found


CHECKS = (
    frozen_student,
    drop_path_with_blocks,
    drowning,
    vanishing,
    unkept_shares,
    fighting,
    disagreement,
    stuck,
    diverging_features,
)

CONSEQUENCES = ("agreement_near_chance", "agreement_not_rising", "loss_not_falling", "features_part")

FROM_A_WRONG_TEACHER = ("term_dominates", "gradients_fight", *CONSEQUENCES)

# What follows from a graver fault is not said beside it.
EXPLAINS: dict[str, tuple[str, ...]] = {
    "student_frozen": ("term_dominates", "term_vanishes", "gradients_fight", *CONSEQUENCES),
    "teacher_normalisation": FROM_A_WRONG_TEACHER,
    "teacher_colours": FROM_A_WRONG_TEACHER,
    "teacher_implausible": FROM_A_WRONG_TEACHER,
    "classes_shuffled": FROM_A_WRONG_TEACHER,
    "gradients_fight": CONSEQUENCES,
    "term_vanishes": ("agreement_near_chance", "agreement_not_rising", "features_part"),
    "term_dominates": ("term_vanishes", *CONSEQUENCES),
}


def look(evidence: Evidence, known: Sequence[Finding] = ()) -> list[Finding]:
    """What is found that is not known yet and does not follow from something else that is.

    Args:
        evidence: so far.
        known: what was found before.
    """
    seen = [finding for check in CHECKS for finding in check(evidence)]
    # Labels that are nearly all of the pull are the other side of a term that is nearly nothing.
    if any(finding.name == "term_vanishes" and finding.subject != TASK for finding in seen):
        seen = [finding for finding in seen if (finding.name, finding.subject) != ("term_dominates", TASK)]
    warned = [finding.name for finding in (*known, *seen) if finding.severity == "warning"]
    explained = {name for cause in warned for name in EXPLAINS.get(cause, ())}
    said = {(finding.name, finding.subject) for finding in known}
    return [
        finding for finding in seen if finding.name not in explained and (finding.name, finding.subject) not in said
    ]


def _rise(agreements: Sequence[float]) -> bool:
    first = agreements[0]
    return max(agreements[1:], default=first) >= first + min(NOT_RISING, 0.1 * (1 - first))


def _whole(evidence: Evidence) -> str:
    return "what --balance leaves to the others" if evidence.facts.chosen else "what pulls on the student"


def _change(verb: str, name: str) -> str:
    return f"{verb} --task_weight" if name == TASK else f"{verb} the weight of {name}: {name}(weight=...)"


def _advice(*ways: str) -> str:
    text = ", or ".join([*ways, "choose shares with --balance"])
    return f"{text[:1].upper()}{text[1:]}."


def _term(name: str) -> str:
    return "the supervised loss" if name == TASK else name


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] if text.startswith("the ") else text


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _percent(share: float) -> str:
    """Rounded down, so that what is nearly everything is not called everything."""
    return f"{100 * share:.2g} %" if share < 0.1 else f"{math.floor(1000 * share) / 10:.1f} %"
