"""The figures of a page as files of their own: charts as SVG, pictures as PNG."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from tomoscout.machine.files import write_bytes


class Figure(NamedTuple):
    """A figure: what it shows (a folder), its name there, and its content, SVG or PNG."""

    kind: str
    name: str
    content: bytes

    @property
    def path(self) -> str:
        """The path of its file. Characters that a file name or a link cannot hold are replaced."""
        suffix = "png" if self.content.startswith(b"\x89PNG") else "svg"
        return f"{self.kind}/{re.sub(r'[^A-Za-z0-9.]+', '-', self.name).strip('-.') or 'figure'}.{suffix}"


def write_figures(folder: Path, figures: Iterable[Figure]) -> None:
    """Write figures into a folder, from which all others are removed. Of two with one path the second gets a number."""
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for figure in figures:
        path = new / figure.path
        number = 2
        while path.exists():
            path = new / figure.path
            path = path.with_stem(f"{path.stem}-{number}")
            number += 1
        write_bytes(path, figure.content)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def drawing(environment: Any, template: str, chart: object, style: str) -> bytes:
    """A chart as an SVG file. `environment`: that of its page; `template`: the file of its macro `draw`."""
    module = environment.get_template(template).module
    return str(module.draw(chart, Markup(style))).strip().encode()


def chart_style(rooms: Mapping[str, tuple[str, str]] | None = None, **values: str) -> str:
    """The style of charts in files, in the light colours of the page and without variables, which few programs other
    than browsers read.

    Args:
        rooms: further style sheets, package → the one with colours and the one of its charts.
        values: variables that a page sets on its charts.
    """
    sheets = {"report": ("page.css", "chart.css"), **(rooms or {})}
    colours, rules = "", "svg { font-family: sans-serif; }\n"
    for room, (palette, charts) in sheets.items():
        folder = files(f"tomoscout.{room}")
        # The first block is that of the light colours.
        colours += folder.joinpath(palette).read_text(encoding="utf-8").partition("}")[0]
        rules += folder.joinpath(charts).read_text(encoding="utf-8")
    known = dict(re.findall(r"--([\w-]+): ([^;]+);", colours)) | values
    rules = re.sub(r"var\(--([\w-]+)(?:, ([^()]*))?\)", lambda found: known.get(found[1]) or found[2], rules)
    rules = re.sub(r"calc\(([\d.]+) \* ([\d.]+)\)", lambda found: f"{float(found[1]) * float(found[2]):.3g}", rules)
    return re.sub(r"max\(([\d.]+), ([\d.]+)\)", lambda found: f"{max(float(found[1]), float(found[2])):.3g}", rules)
