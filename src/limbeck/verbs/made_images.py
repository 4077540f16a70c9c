"""Making images for a teacher and writing them to a folder, for `synthesize` and for `distill --data none`."""

import time
from collections.abc import Callable, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from limbeck.errors import UserError
from limbeck.models.base import VisionModel
from limbeck.models.door import class_names_of, load_model
from limbeck.synthesis.bank import BankWriter
from limbeck.synthesis.base import GrownSynthesis, Setting, StreamedSynthesis, Synthesis
from limbeck.synthesis.build import build_synthesis, shares_of, statistics_file
from limbeck.synthesis.names import SynthesisSpec
from limbeck.synthesis.way import Way
from limbeck.verbs import screen

Batch = TypeVar("Batch", bound=Sized)


def make_setting(
    teacher_name: str,
    teacher: VisionModel,
    *,
    size: int | str,
    batch_size: int,
    seed: int,
    student: str | None = None,
    statistics: str = "auto",
) -> Setting:
    """What every way of making images is given.

    Args:
        teacher_name, teacher: as named and opened, on its device.
        size: side of the pictures; "auto" is the teacher's input.
        batch_size: pictures made together.
        seed: of everything random.
        student: name of a finished network to disagree with.
        statistics: file of token moments, "auto" or "none"; see `statistics_file`.

    Raises:
        UserError: the student knows other classes.
        FileNotFoundError: there is no such file.
    """
    opened = load_model(student).to(teacher.mean.device) if student is not None else None
    if opened is not None and opened.facts.num_classes != teacher.facts.num_classes:
        raise UserError(
            f"The student {student} has {opened.facts.num_classes} classes and the teacher {teacher.facts.num_classes}; "
            "images that puzzle one of them need the same classes."
        )
    return Setting(
        teacher,
        teacher.facts.input_size if size == "auto" else (int(size), int(size)),
        batch_size=batch_size,
        seed=seed,
        class_names=class_names_of(teacher_name),
        student=opened,
        statistics=statistics_file(teacher_name, statistics),
        say=screen.say,
    )


def fill_folder(
    folder: Path,
    specs: Sequence[SynthesisSpec],
    ways: Sequence[Synthesis],
    count: int,
    setting: Setting,
    *,
    image_format: str = "png",
    second: VisionModel | None = None,
    command: str | None = None,
) -> list[str]:
    """Make `count` pictures and write them, going on where an earlier, stopped call with the same recipe left off.

    Args:
        folder: made where it does not exist.
        specs: what the user asked for.
        ways: built from them.
        count: pictures in all.
        setting: what they were built with.
        image_format: png or webp.
        second: another network whose agreement is measured.
        command: for the data card.

    Returns:
        What the user should know of each way; what became known on the way is said.

    Raises:
        UserError: the folder holds something else, or a way cannot make pictures without a learning student.
    """
    for spec, way in zip(specs, ways, strict=True):
        if way.needs_learning_student and setting.student is None:
            raise UserError(
                f"{spec.name} makes its images against a student. Use it with `limbeck distill --data none --synthesis "
                f"{spec.name}`, where one learns at the same time, name a finished one with --student, or take another way."
            )
    known = notes_of(specs, ways)
    began = time.perf_counter()
    counts = shares_of(count, specs)
    writer = BankWriter(folder, setting, list(specs), counts=counts, image_format=image_format, command=command)
    for source, (spec, way, own) in enumerate(zip(specs, ways, counts, strict=True)):
        done = writer.done(source)
        screen.say(f"{spec}: {own} images of {setting.size[0]}x{setting.size[1]} pixels" + _already(done))
        write_batches(way, own, done, partial(writer.write, source=source), "an image")
    notes = notes_of(specs, ways)
    screen.notes(note for note in notes if note not in known)
    screen.say("Measuring and describing the images.")
    writer.finish(seconds=time.perf_counter() - began, second=second, notes=notes)
    return notes


def write_batches(
    way: Way[Any, Batch], count: int, done: int, write: Callable[[Batch], None], one_picture: str
) -> None:
    """Make the pictures that are missing, write each batch as it comes, and say how far it is and how long the rest takes.

    Args:
        way: makes them.
        count: pictures in all.
        done: of which so many are there.
        write: keeps a batch.
        one_picture: what it is called: "an image".
    """
    began, first = time.perf_counter(), done
    for made in way.make(count, done) if done < count else ():
        write(made)
        done += len(made)
        pace = (time.perf_counter() - began) / (done - first)
        losses = ", ".join(f"{name} {value:.3g}" for name, value in way.log().items())
        screen.say(f"  {done}/{count}, {pace:.2f} s {one_picture}, about {pace * (count - done):.0f} s left. {losses}")


def build_ways(specs: Sequence[SynthesisSpec], setting: Setting) -> list[Synthesis]:
    """Every way of a list, in its order.

    Raises:
        UserError: an option is wrong, or a way refuses this teacher.
    """
    return [build_synthesis(spec, setting) for spec in specs]


def notes_of(specs: Sequence[SynthesisSpec], ways: Sequence[Synthesis]) -> list[str]:
    """What the user should know of each way."""
    return [f"{spec.name}: {note}" for spec, way in zip(specs, ways, strict=True) for note in way.notes]


def learns_with_student(way: Synthesis) -> bool:
    """Whether its pictures can only be made while the student learns, or are better for it."""
    return isinstance(way, StreamedSynthesis) or (isinstance(way, GrownSynthesis) and way.reads_student)


def _already(done: int) -> str:
    return f", {done} of them made already." if done else "."
