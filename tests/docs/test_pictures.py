"""The pictures of the documentation: the graph of rules is the one that Snakemake draws from today's rules."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from support.markdown import DOCUMENTS, ROOT, links

IMAGES = ROOT / "docs/images"


@pytest.fixture(scope="module")
def rulegraph() -> ModuleType:
    found = importlib.util.spec_from_file_location("rulegraph", ROOT / "docs/rulegraph.py")
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.workflow
def test_the_graph_is_that_of_todays_rules(rulegraph: ModuleType, tmp_path: Path) -> None:
    drawn = rulegraph.draw(rulegraph.ask_snakemake(tmp_path), rulegraph.rules_text())
    assert drawn == rulegraph.FILE.read_text(), "python docs/rulegraph.py draws it anew"


def test_what_follows_through_others_is_not_drawn(rulegraph: ModuleType) -> None:
    edges = {("a", "b"), ("b", "c"), ("a", "c"), ("c", "d"), ("a", "d"), ("e", "d")}
    assert rulegraph.without_shortcuts(edges) == {("a", "b"), ("b", "c"), ("c", "d"), ("e", "d")}


def test_pictures_are_small_and_each_is_shown() -> None:
    pictures = [path for path in IMAGES.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in pictures) < 300_000
    shown = {(document.parent / link).resolve() for document in DOCUMENTS for link in links(document)}
    assert set(pictures) <= shown
