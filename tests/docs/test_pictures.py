"""The pictures of the documentation: the graph of rules is the one that Snakemake draws from today's rules."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from support.markdown import DOCUMENTS, ROOT, links

IMAGES = ROOT / "docs/images"


def load(name: str) -> ModuleType:
    """A script beside the guides, as a module."""
    found = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rulegraph() -> ModuleType:
    return load("rulegraph")


@pytest.mark.workflow
def test_the_graph_is_that_of_todays_rules(rulegraph: ModuleType, tmp_path: Path) -> None:
    drawn = rulegraph.draw(rulegraph.ask_snakemake(tmp_path), rulegraph.rules_text())
    assert drawn == rulegraph.FILE.read_text(), "python docs/rulegraph.py draws it anew"


def test_what_follows_through_others_is_not_drawn(rulegraph: ModuleType) -> None:
    edges = {("a", "b"), ("b", "c"), ("a", "c"), ("c", "d"), ("a", "d"), ("e", "d")}
    assert rulegraph.without_shortcuts(edges) == {("a", "b"), ("b", "c"), ("c", "d"), ("e", "d")}


def test_the_legend_fits_its_panels() -> None:
    pictures = load("pictures")
    panels = {name: np.zeros((40, 300, 3), np.uint8) for name in ("one", "two")}
    drawn = pictures.beside_each_other(panels, {"ribosome": (250, 0, 0), "ferritin": (0, 0, 250)})
    assert drawn.size == (600 + pictures.GAP, 40 + 2 * pictures.LINE)
    assert {(250, 0, 0), (0, 0, 250)} <= {colour for _, colour in drawn.getcolors(1 << 16)}


def test_pictures_are_small_and_each_is_shown() -> None:
    pictures = [path for path in IMAGES.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in pictures) < 300_000
    shown = {(document.parent / link).resolve() for document in DOCUMENTS for link in links(document)}
    assert set(pictures) <= shown
