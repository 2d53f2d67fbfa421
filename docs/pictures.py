"""Draw what comes out, from a finished `make demo`: `python docs/pictures.py` writes docs/images/picking.png.

A test run of the demo: a slice of the tomogram, the most probable class of each voxel, and the picks.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tomoscout.data.project import Project
from tomoscout.data.written import Probabilities
from tomoscout.machine.files import read_json
from tomoscout.options.names import Source
from tomoscout.report.colours import readable_colours
from tomoscout.report.pictures import slice_image

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs/images/picking.png"
SPACING, URI, SCALE, GAP, LINE = 10.0, "wbp@10.0", 2, 8, 26


def draw(results: Path, file: Path) -> None:
    """Write the picture of the first test run of the demo whose results are in a folder."""
    project = Project("phantom", results / "phantom/copick.json")
    run = read_json(results / "splits/default.json")["folds"][0]["test"][0].split("/")[1]
    tomogram = project.read_tomogram(run, URI)
    objects = [entry for entry in project.objects.values() if entry.is_particle]
    picks = {entry.name: project.read_picks(run, Source(entry.name, "tomoscout", "demo")) for entry in objects}
    colours = dict(zip(picks, readable_colours([entry.color for entry in objects]), strict=True))
    z = len(tomogram) // 2
    grey = _enlarged(slice_image(tomogram[z - 1 : z + 2].mean(axis=0)))
    grey = np.repeat(grey[..., None], 3, axis=2)

    circled = Image.fromarray(grey)
    pen = ImageDraw.Draw(circled)
    for entry in objects:
        for x, y, height in picks[entry.name].positions / SPACING:
            cut = (entry.radius / SPACING) ** 2 - (height - z) ** 2
            if cut > 0:
                centre = [(place + 0.5) * SCALE - 0.5 for place in (x, y)]
                pen.circle(centre, cut**0.5 * SCALE, outline=colours[entry.name], width=2)

    model = read_json(results / "segment/demo/phantom" / f"{run}.json")
    names = [entry["name"] for entry in model["classes"]]
    channels = project.read_probabilities(run, Probabilities(URI, "tomoscout-demo"))[:, z] / 255
    coloured = sum(channel[..., None] * np.array(colours[name]) for name, channel in zip(names, channels, strict=True))
    panels = {
        f"tomogram (slice {z}, signal-to-noise 0.15)": grey,
        "class probabilities": _enlarged(coloured.clip(0, 255).astype(np.uint8)),
        "picks": np.asarray(circled),
    }
    beside_each_other(panels, colours).quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        file, optimize=True
    )


def _enlarged(picture: np.ndarray) -> np.ndarray:
    size = picture.shape[1] * SCALE, picture.shape[0] * SCALE
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def beside_each_other(panels: dict[str, np.ndarray], colours: dict[str, tuple[int, int, int]]) -> Image.Image:
    """The panels with their titles above, and a legend below."""
    font = ImageFont.load_default(15)
    width, height = next(iter(panels.values())).shape[1::-1]
    canvas = Image.new("RGB", ((width + GAP) * len(panels) - GAP, height + 2 * LINE), "white")
    pen = ImageDraw.Draw(canvas)
    for number, (title, panel) in enumerate(panels.items()):
        left = number * (width + GAP)
        pen.text((left + 2, LINE / 2), title, fill="black", font=font, anchor="lm")
        canvas.paste(Image.fromarray(panel), (left, LINE))
    left, middle = 2.0, height + LINE * 1.5 + 2
    for name, colour in colours.items():
        pen.ellipse((left, middle - 6, left + 12, middle + 6), fill=colour, outline=(90, 90, 90))
        pen.text((left + 18, middle), name, fill="black", font=font, anchor="lm")
        left += 18 + font.getlength(name) + 22
    return canvas


if __name__ == "__main__":
    draw(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "demo/results"), FILE)
    print(FILE)
