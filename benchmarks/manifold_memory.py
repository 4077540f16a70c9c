"""What the full manifold term needs beyond the decoupled ones: peak memory and time at growing batches.

    python benchmarks/manifold_memory.py --out benchmarks/results/manifold_memory_cpu

Forward and backward pass of each term beyond the inputs and their gradient: the full term as limbeck has it, the same from
the map of all pairs of patches, and the three decoupled terms.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from step_cost import Job, heading, peak_memory, start, take_turns, write
from torch import Tensor

from limbeck.losses import manifold_full, manifold_inter, manifold_intra, manifold_random


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/manifold_memory_cpu"), help="without suffix"
    )
    options, device, results = start(parser)
    results["memory"] = measure_memory(options, device)
    lines = heading("Memory of the manifold terms", results) + memory_table(results["memory"]["rows"])
    write(results, "\n".join(lines) + "\n", options.out)


def explicit(student: Tensor, teacher: Tensor) -> Tensor:
    """The full term from its definition, with the map of all pairs of patches."""
    own, other = (F.normalize(tokens, dim=-1).flatten(0, 1) for tokens in (student, teacher))
    return (own @ own.T - other @ other.T).square().mean()


def measure_memory(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Peak memory and time of the manifold terms by batch size and width."""
    count, widths, batches, largest = (
        (16, (8, 16), (4, 8, 16), 16) if options.smoke else (196, (192, 384), (8, 16, 32, 64), 32)
    )
    forms = {
        "full": manifold_full,
        "explicit": explicit,
        "intra": manifold_intra,
        "inter": manifold_inter,
        "random": manifold_random,
    }
    rows = []
    for width in widths:
        for batch in batches:
            student = torch.randn(batch, count, width, device=device, requires_grad=True)
            teacher = torch.randn(batch, count, width, device=device)
            gradient = student.numel() * student.element_size()
            jobs: dict[str, Job] = {}
            for name, form in forms.items():
                if name == "explicit" and batch > largest:
                    continue
                jobs[name] = lambda form=form, s=student, t=teacher: torch.autograd.grad(form(s, t), s)  # type: ignore[misc]
            seconds = take_turns(jobs, options, device)
            for name, job in jobs.items():
                rows.append(
                    {
                        "form": name,
                        "tokens": count,
                        "width": width,
                        "batch": batch,
                        "inputs_bytes": 2 * gradient,
                        "gradient_bytes": gradient,
                        "extra_bytes": peak_memory(job, device) - gradient,
                        "ms": 1e3 * statistics.median(seconds[name]),
                    }
                )
    return {"rows": rows}


def memory_table(rows: list[dict[str, Any]]) -> list[str]:
    """One line per width and batch."""
    forms = list(dict.fromkeys(row["form"] for row in rows))
    lines = [
        "",
        f"## Manifold terms, {rows[0]['tokens']} patches per image, equal widths, float32",
        "",
        "Peak memory of forward and backward beyond the inputs and their gradient in MiB, and time in ms. `full` needs "
        "copies of the tokens (as every term does: they are normalised) and maps of width x width; `explicit` is the "
        "same value from maps of (batch x patches)².",
        "",
        "| width | batch | inputs | map of all pairs | " + " | ".join(forms) + " |",
        "|" + "---|" * (4 + len(forms)),
    ]
    for width, batch in dict.fromkeys((row["width"], row["batch"]) for row in rows):
        cells = {row["form"]: row for row in rows if (row["width"], row["batch"]) == (width, batch)}
        shown = [
            f"{cells[form]['extra_bytes'] / 2**20:.2f} MiB, {cells[form]['ms']:.1f} ms" if form in cells else "not run"
            for form in forms
        ]
        pairs = 4 * (batch * cells["full"]["tokens"]) ** 2 / 2**20
        lines.append(
            f"| {width} | {batch} | {cells['full']['inputs_bytes'] / 2**20:.2f} MiB | {pairs:.2f} MiB | "
            + " | ".join(shown)
            + " |"
        )
    return lines


if __name__ == "__main__":
    main()
