"""The data card of a folder of pictures that were made for a classifier."""

from collections.abc import Sequence
from typing import Any

from limbeck.synthesis.names import SYNTHESES
from limbeck.synthesis.quality import MEANINGS

_FEW_CLASSES = 20
_FROM_FILES = ("image", "images")  # options that name pictures which somebody else made

_PERCENT = {"confidence", "read_as_asked", "near_duplicates", "second_agreement"}


def data_card(record: dict[str, Any]) -> str:
    """Markdown that says what the pictures are, how good, under which licences, and what they are not for.

    Args:
        record: what stands in synthesis.json, with or without `pictures`; see `limbeck.synthesis.bank`.
    """
    quality, teacher, (height, width) = record["quality"], record["teacher"], record["size"]
    total = quality["pictures"]
    each = record["seconds"] / total
    return "\n".join(
        [
            f"# {total:,} pictures made for {_inline(teacher['name'])}",
            "",
            "These pictures were not collected for a purpose of their own: they were computed, or cut out and chosen, so that a "
            f"student can learn from the network {_inline(teacher['name'])} without the data that it was trained on. Their "
            "labels are that network's own answers. A person may see nothing in them.",
            "",
            f"* Size: {height} x {width} pixels (height x width), 8-bit RGB, {record['image_format']}.",
            f"* Classes: {record['num_classes']:,}"
            + (", without recorded names." if record["class_names"] is None else ".")
            + " A folder in `images/` is called by the number of the class and its name, and there is one only for a class "
            "that the teacher sees somewhere.",
            "* The teacher's answers: `soft_labels.npz`. Everything else about each picture: `synthesis.json`. Some of them to "
            "look at: `contact_sheet.png`.",
            "",
            "## How they were made",
            "",
            *_how(record),
            f"The seed is {record['seed']}, with {record['batch_size']} pictures at a time. It took {record['seconds']:,.0f} s, "
            f"{each:.2g} s a picture ({record['device']}), with limbeck {record['versions']['limbeck']} and torch "
            f"{record['versions']['torch']}.",
            "",
            *_ways(record),
            *([*(f"* {_inline(note)}" for note in record["notes"]), ""] if record["notes"] else []),
            "## How good they are",
            "",
            "None of the teacher's data was needed for these numbers, and none of them says how well a student will learn.",
            "",
            "| number | value | what it means |",
            "|---|---|---|",
            *(
                f"| {key.replace('_', ' ')} | {_value(key, quality[key])} | {meaning} |"
                for key, meaning in MEANINGS.items()
                if quality[key] is not None
            ),
            "",
            *_measured_on(record),
            *_classes(record),
            "## Licences",
            "",
            *_licences(record),
            "## What they are not for",
            "",
            "* Not for measuring: an accuracy on these pictures says how far a network agrees with the teacher on pictures "
            "that were made for it, not what it is good for. Measure on real, labelled images (`--val_data`).",
            "* Not as true labels: every mistake, gap and prejudice of the teacher is in them, and classes that it confuses "
            "are confused here.",
            "* Not as anonymous data: pictures computed from a network's weights can resemble what it was trained on. Treat "
            "them as confidentially as the teacher itself.",
            "* Made for one teacher: for another network's student, and most of all for another kind of network, they may be "
            "worth little.",
            "* Other tools number class folders anew from 0; where a class has no folder, their labels are then not the "
            "teacher's. `limbeck` reads the labels from `synthesis.json`.",
            "",
            "To learn from them:",
            "",
            "    limbeck distill --teacher TEACHER --student STUDENT --data THIS_FOLDER --val_data REAL_LABELLED_IMAGES",
            "",
        ]
    )


def _how(record: dict[str, Any]) -> list[str]:
    return [] if record["command"] is None else [f"    {' '.join(record['command'].split())}", ""]


def _ways(record: dict[str, Any]) -> list[str]:
    lines = [
        "| way | what it does | after | pictures | classes seen | confidence | read as asked |",
        "|---|---|---|---|---|---|---|",
    ]
    for source in record["sources"]:
        info = SYNTHESES.get(source["name"])
        what, after = (info.summary, info.reference) if info is not None else ("a class of the user's own", "–")
        values = [_value(key, source[key]) for key in ("pictures", "classes", "confidence", "read_as_asked")]
        lines.append(f"| `{_cell(source['text'])}` | {what} | {after} | {' | '.join(values)} |")
    return [*lines, ""]


def _measured_on(record: dict[str, Any]) -> list[str]:
    quality = record["quality"]
    lines = []
    if quality["sampled"] < quality["pictures"]:
        lines.append(
            f"From similarity on, the numbers were measured on {quality['sampled']:,} pictures, chosen at random."
        )
    if record["second"] is not None:
        lines.append(f"The second network is {_inline(record['second']['name'])}.")
    return [" ".join(lines), ""] if lines else []


def _classes(record: dict[str, Any]) -> list[str]:
    counts = record["class_counts"]
    names = record["class_names"] or [str(label) for label in range(len(counts))]
    if len(counts) <= _FEW_CLASSES:
        rows = [f"| {_cell(name)} | {count:,} |" for name, count in zip(names, counts, strict=True)]
        return ["| class | pictures |", "|---|---|", *rows, ""]
    ranked = sorted(counts)
    empty = [_inline(name) for name, count in zip(names, counts, strict=True) if count == 0]
    words = f"Pictures of a class: {ranked[0]:,} at least, {ranked[len(ranked) // 2]:,} in the median, {ranked[-1]:,} at most."
    return [words + (f" Without any: {_some(empty)}." if empty else ""), ""]


def _licences(record: dict[str, Any]) -> list[str]:
    teacher = record["teacher"]
    lines = [
        f"* The teacher's weights (from {_inline(teacher['source'])}, SHA-256 `{teacher['weights_sha256'][:16]}…`): "
        f"**{_inline(teacher['licence'])}**. Whether its terms reach pictures and labels made with it is for you to judge."
    ]
    if record["student"] is not None:
        student = record["student"]
        lines.append(f"* Made against the student {_inline(student['name'])}: {_inline(student['licence'])}.")
    for source in record["sources"]:
        files = [str(value) for key, value in source["options"].items() if key in _FROM_FILES]
        if files:
            lines.append(
                f"* Pictures of `{_cell(source['text'])}` are, or are cut out of, pictures from {_inline(', '.join(files))}. "
                "They keep the licence and the rights of those, which this tool does not know."
            )
    return [*lines, ""]


def _value(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    if key in _PERCENT:
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else f"{round(value, 3) + 0.0:.3f}"  # no minus before a zero


def _inline(text: str) -> str:
    """On one line."""
    return " ".join(text.split())


def _cell(text: str) -> str:
    """On one line, without what would end a table's cell."""
    return _inline(text).replace("|", "\\|")


def _some(names: Sequence[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
