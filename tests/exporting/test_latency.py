"""Latency is the median and the 90th percentile of the runs after the warm-up."""

import itertools
from pathlib import Path

import pytest

from limbeck.errors import UserError
from limbeck.exporting.latency import onnx_latency


def test_the_statistics_are_of_the_runs_after_the_warmup(reader_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock of ours, run n takes n ms, and the three runs of the warm-up a second each."""
    durations = [1000, 1000, 1000, *range(1, 12)]
    ticks = itertools.chain.from_iterable((0, duration * 1_000_000) for duration in durations)
    monkeypatch.setattr("limbeck.exporting.latency.time.perf_counter_ns", lambda: next(ticks))
    found = onnx_latency(reader_file, runs=11, warmup=3)
    assert (found.median_ms, found.p90_ms) == (6.0, 10.0)
    assert next(ticks, None) is None, "another number of runs was made"


def test_more_images_take_longer(reader_file: Path) -> None:
    one, many = (onnx_latency(reader_file, runs=9, warmup=2, batch=batch) for batch in (1, 256))
    assert 0 < one.median_ms <= one.p90_ms
    assert many.median_ms > 3 * one.median_ms
    assert (many.batch, many.threads, many.runs, many.warmup) == (256, 1, 9, 2)


def test_what_cannot_be_timed_is_explained(reader_file: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.onnx"):
        onnx_latency(tmp_path / "absent.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(UserError, match=r"broken\.onnx cannot be timed"):
        onnx_latency(tmp_path / "broken.onnx")
    for wrong in ({"threads": 0}, {"runs": 0}, {"warmup": -1}, {"batch": 0}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} was given as"):
            onnx_latency(reader_file, **wrong)
