"""`limbeck report`: the page of a run."""

from pathlib import Path

from limbeck.verbs import screen


def report(run: str, control: list[str] | None = None, out: str | None = None) -> Path:
    """Write one self-contained HTML page about a run.

    Args:
        run: the run's folder.
        control: folders of runs without distillation (several seeds give a spread) to compare with.
        out: where to write the page; by default report.html in the run's folder.

    Returns:
        The page.

    Raises:
        UserError: the folder holds no run.
    """
    from limbeck.reporting.page import write_report

    page = write_report(run, controls=control or [], out=out)
    screen.say(f"Report: {page}")
    return page
