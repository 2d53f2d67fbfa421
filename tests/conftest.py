"""What tests of several rooms start from, and what each tier says of the tests that it leaves to the other."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

# The workers of a test run share the cores: PyTorch's threads in each would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from support.project import SmallProject

KINDS = {"slurm": "Slurm", "image": "container image", "browser": "browser", "backend": "back end", "long": "long"}
"""Markers of tests that `make test` leaves to `make test-all`: what is said of them."""

FIRST = ("containers", "workflow", "stages")
"""Folders whose files take longest."""

left_out: Counter[str] = Counter()


@pytest.fixture
def small(tmp_path: Path) -> SmallProject:
    """A project without any run."""
    return SmallProject(tmp_path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file that takes long and is started last would leave the other workers without work."""
    items.sort(key=lambda item: item.path.parent.name not in FIRST)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")


def pytest_deselected(items: list[pytest.Item]) -> None:
    left_out.update(next((kind for kind in KINDS if item.get_closest_marker(kind)), "") for item in items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    # Each worker has collected everything.
    left_out.update(Counter(getattr(node, "workeroutput", {}).get("left_out", {})) - left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts = [f"{left_out[kind]} {name}" for kind, name in KINDS.items() if left_out[kind]]
    if counts:
        terminalreporter.write_line(f"not run here: {', '.join(counts)} (make test-all)")
    if left_out[""]:
        terminalreporter.write_line(f"not run here: {left_out['']} that need no service and are not long (make test)")
