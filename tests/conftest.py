"""Shape annotations are checked at run time in every test, unless LIMBECK_SHAPE_CHECKS=0.

The checker cannot be traced, so tests of whole compiled graphs (marker `compile`) run only without it.
"""

import os

import pytest

SHAPE_CHECKS = os.environ.get("LIMBECK_SHAPE_CHECKS") != "0"

if SHAPE_CHECKS:
    from jaxtyping import install_import_hook

    # Before anything imports the losses: the hook rewrites modules as they are loaded.
    install_import_hook("limbeck.losses", "beartype.beartype")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Whole programs first: the slow files must not be what one worker is left with while the other is idle.
    items.sort(key=lambda item: "verbs" not in item.path.parts)
    if not SHAPE_CHECKS:
        return
    skip = pytest.mark.skip(reason="run-time shape checks cannot be compiled; set LIMBECK_SHAPE_CHECKS=0")
    for item in items:
        if item.get_closest_marker("compile"):
            item.add_marker(skip)
