"""What tests ask of a Markdown file: its blocks of code, its links, its headings, what stands in backquotes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "config/README.md",
    ROOT / "workflow/profiles/README.md",
    ROOT / "tests/benchmarks/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]

_BLOCK = re.compile(r"^(?P<indent> *)```(?P<kind>[^\n`]*)\n(?P<text>.*?)^ *```$", re.M | re.S)


class Block(NamedTuple):
    """A block of code: where it begins, what stands after the backquotes (`yaml`, `python snakefile`), its text."""

    document: Path
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def all_blocks(document: Path) -> list[Block]:
    """The blocks of a document."""
    text = document.read_text(encoding="utf-8")
    return [
        Block(document, text.count("\n", 0, found.start()) + 1, found["kind"].strip(), _dedent(found))
        for found in _BLOCK.finditer(text)
    ]


def blocks(document: Path, kind: str) -> list[Block]:
    """The blocks of one kind in a document."""
    return [block for block in all_blocks(document) if block.kind == kind]


def _dedent(found: re.Match[str]) -> str:
    return re.sub(rf"^ {{0,{len(found['indent'])}}}", "", found["text"], flags=re.M)


def prose(document: Path) -> str:
    """A document without its blocks of code."""
    return _BLOCK.sub("", document.read_text(encoding="utf-8"))


def in_backquotes(document: Path) -> set[str]:
    """What stands in backquotes in the prose, with spaces in place of ends of lines."""
    return {" ".join(found.split()) for found in re.findall(r"`([^`]+)`", prose(document))}


def links(document: Path) -> list[str]:
    """Where the links and pictures of a document lead."""
    return re.findall(r"\]\(([^()\s]+)\)", prose(document))


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives to the headings."""
    titles = re.findall(r"^#+ (.+)$", prose(document), re.M)
    plain = [re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower()) for title in titles]
    return {title.strip().replace(" ", "-") for title in plain}


def commands(document: Path) -> Iterator[str]:
    """The commands in the bash blocks, each in one line and without its comment."""
    for block in blocks(document, "bash"):
        for line in re.sub(r" *\\\n *", " ", block.text).splitlines():
            command = re.sub(r"(^|\s+)#.*$", "", line).strip()
            if command:
                yield command
