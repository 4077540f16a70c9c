"""Metrics survive a kill: half lines are dropped, and so is what a killed run wrote after its checkpoint."""

import csv
from pathlib import Path

from limbeck.training.records import Records, read_records


def test_records_after_the_checkpoint_are_dropped_on_resume(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    first = Records(file)
    for step in (5, 10, 15):
        first.add("train", step // 10, step, {"loss/total": step / 10})
    with file.open("a") as out:
        out.write('{"kind": "train", "epo')
    resumed = Records(file, upto_step=10)
    assert [row["step"] for row in resumed.rows] == [5, 10]
    resumed.add("val", 1, 20, {"accuracy": 0.5})
    assert [row["step"] for row in read_records(file)] == [5, 10, 20]


def test_the_csv_holds_every_record_with_empty_cells(tmp_path: Path) -> None:
    records = Records(tmp_path / "metrics.jsonl")
    records.add("train", 0, 1, {"loss/total": 1.5})
    records.add("val", 0, 1, {"accuracy": 0.25})
    records.write_csv()
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert rows[0]["loss/total"] == "1.5"
    assert rows[0]["accuracy"] == ""
    assert rows[1]["accuracy"] == "0.25"
