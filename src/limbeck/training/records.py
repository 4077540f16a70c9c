"""metrics.jsonl and metrics.csv: one record per event, appended as it happens, exact after a resume."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from limbeck.files import atomic_write


class Records:
    """The metrics of one run, on disk.

    Args:
        file: metrics.jsonl; metrics.csv is written beside it.
        upto_step: drop records of later steps: those that a killed run wrote after its last checkpoint. None keeps all.
    """

    def __init__(self, file: Path, upto_step: int | None = None) -> None:
        self.file = file
        self.rows = read_records(file)
        if upto_step is not None:
            self.rows = [row for row in self.rows if row["step"] <= upto_step]
        with atomic_write(file) as out:
            out.write("".join(json.dumps(row) + "\n" for row in self.rows).encode())

    def add(self, kind: str, epoch: int, step: int, values: dict[str, Any]) -> None:
        """Append one record."""
        row = {"kind": kind, "epoch": epoch, "step": step, **values}
        self.rows.append(row)
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def of(self, kind: str) -> list[dict[str, Any]]:
        """All records of one kind, oldest first."""
        return [row for row in self.rows if row["kind"] == kind]

    def write_csv(self) -> None:
        """Write every record as a row of metrics.csv, absent values empty."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        with atomic_write(self.file.with_suffix(".csv")) as out:
            out.write(text.getvalue().encode())


def read_records(file: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line cut off by a kill is left out."""
    rows: list[dict[str, Any]] = []
    for line in file.read_text().splitlines() if file.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
