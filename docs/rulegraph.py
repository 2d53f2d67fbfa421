"""Draw the rules of the workflow and what follows from what: `python docs/rulegraph.py` writes docs/images/rules.svg.

Snakemake says which rules there are; what follows through others is not drawn again.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs/images/rules.svg"
TARGETS = ["all", "explore"]
# A trial is proposed from the results of those before: of rules, unlike of jobs, that is a circle.
BACK = ("trial", "suggest")
CONFIG = {
    "projects": {"phantom": "results/phantom/copick.json"},
    "tomograms": ["wbp@10.0"],
    "targets": {"picks": "phantom/0"},
    "phantom": {"runs": 4, "shape": [32, 64, 64], "particles": 1, "signal_to_noise": 2.0},
}

# Of a box and of the gaps between boxes, in pixels.
WIDTH, HEIGHT, ACROSS, DOWN, MARGIN = 152, 30, 20, 30, 12
# Fill, border: jobs that ask for a GPU, other jobs, named targets.
COLOURS = {"gpu": ("#d9f2e6", "#0b7a55"), "cpu": ("#eef1f5", "#5b6778"), "target": ("#ffffff", "#9aa4b2")}

Edges = set[tuple[str, str]]


def rules_of(dot: str) -> Edges:
    """The pairs of rules (earlier, later) in what `snakemake --rulegraph dot` printed."""
    names = dict(re.findall(r'^\s*(\d+)\[label = "(\w+)"', dot, re.M))
    pairs = {(names[one], names[other]) for one, other in re.findall(r"^\s*(\d+) -> (\d+)$", dot, re.M)}
    return {(one, other) for one, other in pairs if one != other}


def without_shortcuts(edges: Edges) -> Edges:
    """The pairs that do not follow from others."""
    later = {name: {b for a, b in edges if a == name} for edge in edges for name in edge}

    def reached(name: str) -> set[str]:
        return later[name].union(*(reached(after) for after in later[name]))

    return {(a, b) for a, b in edges if not any(b in reached(between) for between in later[a])}


def chains_of(edges: Edges) -> list[list[str]]:
    """Each pair as a chain through all rows between: of the rules, and of places that a long line passes."""
    before: dict[str, list[str]] = {}
    for earlier, later in edges:
        before.setdefault(later, []).append(earlier)

    def row(name: str) -> int:
        return 1 + max((row(other) for other in before.get(name, [])), default=-1)

    return [
        [f"{row(a)} {a}", *(f"{number} {a}>{b}" for number in range(row(a) + 1, row(b))), f"{row(b)} {b}"]
        for a, b in sorted(edges)
    ]


def place(chains: list[list[str]]) -> dict[str, tuple[float, float]]:
    """The centre (x, y) of each link: below all that it waits for, near the middle of its neighbours."""
    neighbours: dict[str, set[str]] = {}
    for chain in chains:
        for one, other in pairwise(chain):
            neighbours.setdefault(one, set()).add(other)
            neighbours.setdefault(other, set()).add(one)
    rows: dict[int, list[str]] = {}
    for link in sorted(neighbours):
        rows.setdefault(int(link.split()[0]), []).append(link)
    x = {link: 1.0 * number for row in rows.values() for number, link in enumerate(row)}
    for sweep in range(40):
        for row in sorted(rows, reverse=sweep % 2 == 1):
            wanted = {link: mean(x[other] for other in neighbours[link]) for link in rows[row]}
            rows[row].sort(key=lambda link: (wanted[link], link))
            x |= dict(zip(rows[row], _apart(rows[row], wanted), strict=True))
    left = min(x[link] - _width(link) / 2 for link in x) - MARGIN
    return {link: (round(x[link] - left), _middle(row)) for row, links in rows.items() for link in links}


def _middle(row: int) -> float:
    return MARGIN + row * (HEIGHT + DOWN) + HEIGHT / 2


def _width(link: str) -> int:
    return 4 if ">" in link else WIDTH


def _apart(links: list[str], wanted: Mapping[str, float]) -> list[float]:
    """Places in the order given that do not overlap, as a whole where they were wanted."""
    places: list[float] = []
    for number, link in enumerate(links):
        least = places[-1] + (_width(links[number - 1]) + _width(link)) / 2 + ACROSS if number else wanted[link]
        places.append(max(wanted[link], least))
    shift = mean(wanted.values()) - mean(places)
    return [place + shift for place in places]


def kinds_of(rules: str) -> tuple[set[str], set[str]]:
    """From the text of the rules: those that ask for a GPU, and those with a job for each batch of runs or trial."""
    texts = dict(re.findall(r"^rule (\w+):(.*?)(?=^\S|\Z)", rules, re.M | re.S))
    gpu = {name for name, text in texts.items() if "gpu=" in text}
    many = {name for name, text in texts.items() if re.search(r"{wildcards\.(batch|trial)}", text)}
    return gpu, many


def draw(dot: str, rules: str) -> str:
    """The graph as SVG. `dot`: what Snakemake printed; `rules`: the text of the files of rules."""
    chains = chains_of(without_shortcuts(rules_of(dot) - {BACK}))
    links = place(chains)
    places = {link.split()[1]: centre for link, centre in links.items() if ">" not in link}
    gpu, many = kinds_of(rules)
    width = max(x for x, _ in places.values()) + WIDTH / 2 + MARGIN
    height = max(y for _, y in places.values()) + HEIGHT / 2 + MARGIN
    parts = [_arrow([links[link] for link in chain]) for chain in chains]
    if BACK in rules_of(dot):
        parts.append(_back(places[BACK[0]], places[BACK[1]]))
    for name, centre in sorted(places.items()):
        kind = "target" if name in TARGETS else "gpu" if name in gpu else "cpu"
        parts.append(_box(name, centre, *COLOURS[kind], stacked=name in many))
    legend, bottom = _legend(height)
    size = f'width="{width:g}" height="{bottom:g}" viewBox="0 0 {width:g} {bottom:g}"'
    arrow = '<marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    arrow += '<path d="M0 0 8 4 0 8z" fill="#7a8594"/></marker>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">'
    title = "<title>The rules of the workflow</title>"
    ground = f'<rect width="{width:g}" height="{bottom:g}" fill="#ffffff"/>'
    return "\n".join([head, title, f"<defs>{arrow}</defs>", ground, *parts, *legend, "</svg>", ""])


def _arrow(points: list[tuple[float, float]]) -> str:
    x, y = points[0][0], points[0][1] + HEIGHT / 2
    path = f"M{x:g} {y:g}"
    for number, (across, middle) in enumerate(points[1:], 2):
        last = number == len(points)
        down = middle - HEIGHT / 2 - (2 if last else 0)
        path += f"C{x:g} {(y + down) / 2:g} {across:g} {(y + down) / 2:g} {across:g} {down:g}"
        if not last:
            path += f"V{middle + HEIGHT / 2:g}"
        x, y = across, middle + HEIGHT / 2
    return f'<path d="{path}" fill="none" stroke="#7a8594" stroke-width="1.4" marker-end="url(#arrow)"/>'


def _back(start: tuple[float, float], end: tuple[float, float]) -> str:
    """An arrow upwards, beside the boxes."""
    x1, x2, out = start[0] + WIDTH / 2 + 4, end[0] + WIDTH / 2 + 2, max(start[0], end[0]) + WIDTH / 2 + 24
    path = f"M{x1:g} {start[1]:g}C{out:g} {start[1]:g} {out:g} {end[1]:g} {x2:g} {end[1]:g}"
    return (
        f'<path d="{path}" fill="none" stroke="#7a8594" stroke-width="1.4" stroke-dasharray="4 3"'
        ' marker-end="url(#arrow)"/>'
    )


def _box(name: str, centre: tuple[float, float], fill: str, border: str, *, stacked: bool) -> str:
    x, y = centre[0] - WIDTH / 2, centre[1] - HEIGHT / 2
    shapes = [(x + 4, y + 4), (x, y)] if stacked else [(x, y)]
    boxes = "".join(
        f'<rect x="{left:g}" y="{top:g}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{fill}" stroke="{border}"/>'
        for left, top in shapes
    )
    return f'{boxes}<text x="{centre[0]:g}" y="{centre[1] + 4.5:g}" text-anchor="middle">{name}</text>'


def _legend(top: float) -> tuple[list[str], float]:
    """The legend below the graph, and where it ends."""
    lines = {
        "gpu": "asks for a GPU",
        "cpu": "runs on a CPU; double: a job for each batch of runs, or for each trial",
        "target": "named target",
    }
    parts = []
    for number, (kind, text) in enumerate(lines.items()):
        y = top + 12 + 22 * number
        fill, border = COLOURS[kind]
        parts.append(f'<rect x="{MARGIN}" y="{y:g}" width="22" height="14" rx="4" fill="{fill}" stroke="{border}"/>')
        parts.append(f'<text x="{MARGIN + 30}" y="{y + 12:g}">{text}</text>')
    return parts, top + 12 + 22 * len(lines) + MARGIN


def rules_text(folder: Path = ROOT / "workflow/rules") -> str:
    """The files of rules, one after the other."""
    return "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.smk")))


def ask_snakemake(folder: Path) -> str:
    """The graph of rules as Snakemake prints it, in a working directory in which nothing is made but a phantom."""
    file = folder / "config.json"
    file.write_text(json.dumps(CONFIG), encoding="utf-8")
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder]
    options = ["--cores", "1", "--configfile", file]
    subprocess.run([*command, "phantom", *options, "--quiet", "all"], check=True)
    asked = subprocess.run(
        [*command, *TARGETS, *options, "--rulegraph", "dot"], check=True, stdout=subprocess.PIPE, text=True
    )
    return asked.stdout


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place_to_work:
        FILE.write_text(draw(ask_snakemake(Path(place_to_work)), rules_text()), encoding="utf-8")
    print(FILE)
