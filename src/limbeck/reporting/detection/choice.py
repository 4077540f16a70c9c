"""Which validation images of a detection run are worth keeping to look at."""

from dataclasses import dataclass

from limbeck.reporting.detection.mistakes import FALSE_KINDS
from limbeck.reporting.detection.stored import StoredDetections
from limbeck.reporting.turns import in_turn

TAUGHT, FALSE_ALARM, MISSED, GOOD, OTHER = "taught", "false alarm", "missed", "good", "other"


@dataclass(frozen=True)
class Chosen:
    """An image and why it was chosen: the teacher finds what the student misses, and so on."""

    image: int
    why: str


def choose_images(stored: StoredDetections, count: int = 24) -> list[Chosen]:
    """Pick images, the most telling first.

    The reasons take turns: objects that the teacher finds and the student misses (most of them first), the student's
    surest false positives (the kinds in turn), objects that it misses (the largest first), and images on which no
    model errs (most objects first). Places that are left go to any other images.

    Args:
        stored: the judged detections.
        count: how many to pick at most.
    """
    false, missed = stored.student.mistakes(stored.truths)
    taught: dict[int, int] = {}
    erring = {mistake.image for mistake in false} | {miss.image for miss in missed}
    if stored.teacher is not None:
        false_teacher, missed_teacher = stored.teacher.mistakes(stored.truths)
        erring |= {mistake.image for mistake in false_teacher} | {miss.image for miss in missed_teacher}
        lost = {(miss.image, miss.row) for miss in missed_teacher}
        for miss in missed:
            if (miss.image, miss.row) not in lost:
                taught[miss.image] = taught.get(miss.image, 0) + 1
    by_objects = sorted(range(len(stored.ids)), key=lambda image: -len(stored.truths[image].labels))
    good = [image for image in by_objects if image not in erring and len(stored.truths[image].labels)]
    alarms = in_turn([[mistake.image for mistake in false if mistake.kind == kind] for kind in FALSE_KINDS])
    turns = in_turn(
        [
            [Chosen(image, TAUGHT) for image in sorted(taught, key=lambda image: -taught[image])],
            [Chosen(image, FALSE_ALARM) for image in dict.fromkeys(alarms)],
            [Chosen(image, MISSED) for image in dict.fromkeys(miss.image for miss in missed)],
            [Chosen(image, GOOD) for image in good],
        ]
    )
    first: dict[int, Chosen] = {}
    for chosen in (*turns, *(Chosen(image, OTHER) for image in by_objects)):
        first.setdefault(chosen.image, chosen)
    return list(first.values())[:count]
