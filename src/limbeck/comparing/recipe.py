"""What a comparison is: the options of one distillation, and which methods and seeds it is done with. Imports nothing heavy."""

import dataclasses
import importlib.util
import json
import shlex
from dataclasses import dataclass
from typing import Any

from limbeck.errors import MissingExtraError, UserError
from limbeck.recipe import NO_DATA, Auto, DistillRecipe, as_plain, defaults_of

OWN_OPTIONS = ("methods", "seeds", "jobs", "budget", "tune")
"""What a single run does not have."""

FREE_ON_RESUME = {
    *OWN_OPTIONS,
    *("resume", "out", "progress", "report", "loggers", "num_workers", "checkpoint_steps", "trust_teacher"),
}
"""What may be another when a comparison is taken up again: none of it changes what a run that is already there has learned."""


@dataclass(kw_only=True)
class CompareRecipe(DistillRecipe):
    """Distil with several methods and seeds, and say which method helps.

    All other options are those of `limbeck distill` and belong to every run.

    Args:
        methods: what to compare, separated by commas, each written as for --method of `limbeck distill`:
            "none,kd,vitkd+nkd(gamma=1.0, weight=0.5)". none, the control, is added where it is missing.
        seeds: runs of each method; the first has the seed --seed, the next one more, and so on.
        jobs: runs at a time. auto is as many as there are GPUs for (each run sees only its own), and 1 on other devices.
        budget: minutes. Instead of the comparison a small one is made that takes about so long, from fewer images and epochs; it
            predicts the order of the methods and says how sure that is.
        tune: trials for each method. Before the comparison, weights and temperatures are searched for in short runs on images and
            a seed apart from those that the comparison measures with; what is found stands beside the method as written.
            Needs limbeck[tune].
        method: of a single run; here it is --methods.
        balance: as for `limbeck distill`, of the methods that have the terms it names.
        control: of a single run; here the control is none among --methods.
        seed: of everything random in the first run of each method.
        out: the comparison's folder; auto makes a new one under runs/.
        resume: go on with the comparison in --out: finished runs are kept, stopped ones continued, failed ones tried again. More
            methods and more seeds may be given; all that a run learns from must be as it was.
        report: write the page of the comparison. (`limbeck report` writes that of one of its runs.)
        progress: a line for each finished run.
    """

    methods: list[str]
    seeds: int = 3
    jobs: int | Auto = "auto"
    budget: float | None = None
    tune: int = 0

    def __post_init__(self) -> None:
        methods: Any = self.methods
        if isinstance(methods, str):  # a text is a sequence of letters, which nobody means
            self.methods = [methods]

    def check(self) -> None:
        """As for a distillation; and that the comparison's own options are possible.

        Raises:
            UserError: naming the option, its value and what it may be.
        """
        super().check()
        if self.method != "auto":
            raise UserError(f"--method {self.method} is for a single run; a comparison takes --methods {self.method}.")
        if self.control:
            raise UserError(
                "--control is for a single run's report; here the control is the method none, which is always compared with."
            )
        rules = {
            "seeds": (self.seeds >= 1, "at least 1"),
            "nodes": (self.nodes == 1, "1: the runs of a comparison are on one machine"),
            "jobs": (self.jobs == "auto" or self.jobs >= 1, "auto or at least 1"),
            "budget": (self.budget is None or self.budget > 0, "minutes, above 0"),
            "tune": (self.tune >= 0, "trials for each method, at least 0"),
        }
        for name, (holds, expectation) in rules.items():
            if not holds:
                raise UserError(f"--{name} is {getattr(self, name)!r}; it must be {expectation}.")
        short = "--budget" if self.budget is not None else "--tune"
        if self.data == NO_DATA and (self.budget is not None or self.tune):
            raise UserError(
                f"{short} trains on fewer images, and with --data none every run makes its own. Make them once with limbeck "
                "synthesize, and compare with --data FOLDER --val_data LABELLED."
            )
        if self.tune and self.balance is not None:
            raise UserError("--tune searches for the weights that --balance decides about. Leave one of them out.")
        if self.tune and importlib.util.find_spec("optuna") is None:
            raise MissingExtraError("optuna", "tune", "--tune")


def options_of_runs(recipe: CompareRecipe) -> dict[str, Any]:
    """The options that all runs share, as plain values; method, seed and folder are each run's own."""
    values = as_plain(recipe)
    own = {*OWN_OPTIONS, "out", "resume", "control", "method", "seed", "balance"}
    shared = {name: value for name, value in values.items() if name not in own}
    return shared | {"report": False, "progress": False}


def command_line(recipe: CompareRecipe, **changes: Any) -> str:
    """The command that starts this comparison, with some options changed; options at their default are left out."""
    recipe = dataclasses.replace(recipe, **changes)
    defaults = defaults_of(recipe)
    words = ["limbeck", "compare"]
    for name, value in as_plain(recipe).items():
        if name in defaults and value == defaults[name]:
            continue
        text = ",".join(value) if name == "methods" else value if isinstance(value, str) else json.dumps(value)
        words += [f"--{name}"] if value is True else [f"--{name}", text]
    return shlex.join(words)
