"""The data card of a folder of made scenes."""

from typing import Any


def data_card(record: dict[str, Any]) -> str:
    """Markdown that says what the pictures are, what they hold and what they are not.

    Args:
        record: what synthesis.json will hold; see `limbeck.synthesis.detection.writer`.
    """
    numbers, teacher = record["numbers"], record["teacher"]
    height, width = record["size"]
    mean, least, most = numbers["boxes_per_picture"]
    counts = "\n".join(f"| {name} | {count} |" for name, count in numbers["class_counts"].items())
    rows = [
        ("pictures", f"{numbers['pictures']} of {height} x {width} pixels (height x width), 8-bit RGB"),
        ("labels", "boxes and masks" if record["has_masks"] else "boxes"),
        ("boxes in a picture", f"{mean:.2f} on average, {least} to {most}"),
        ("class balance", f"{numbers['class_balance']:.2f} (1: every class equally often)"),
        ("the teacher's score of the labels", f"{numbers['mean_teacher_score']:.2f} on average, 0 where not found"),
        ("labels that the teacher finds again", f"{numbers['found_again']:.0%} with a score of at least 0.2"),
    ]
    if "seconds_per_picture" in record:
        rows.append(("time", f"{record['seconds_per_picture']:.1f} s for each picture"))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    said = "".join(f"* {note}\n" for note in record["notes"])
    return f"""# Pictures made for a detector

These pictures were not photographed: they were computed from a detector's weights alone, so that another detector can
learn from it without its data. They are not meant to look real, and scores measured on them say nothing about real images.

* made by: `{record["sources"][0]["text"]}`, seed {record["seed"]}, {record["batch_size"]} pictures at a time
* teacher: `{teacher["name"]}`
* SHA-256 of its weights: `{teacher["weights_sha256"]}`
* licence of its weights: {teacher["licence"]}; what follows from it for pictures made of them is for you to judge.
  Such pictures can resemble what the teacher has learned from.
{said}
| what | how much |
|---|---|
{table}

The teacher was asked again about the saved 8-bit pictures, at their own size; a label is found if a detection of its class
overlaps it by more than half.

| class | boxes |
|---|---|
{counts}

`annotations.json` is in COCO's object detection format. Learn from it with

    limbeck distill --task detection --data THIS_FOLDER --val_data REAL_SCENES --teacher TEACHER --student STUDENT
"""
