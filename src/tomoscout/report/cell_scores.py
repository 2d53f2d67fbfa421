"""The page of a model's scores: tables, curves of the training, and the worst images."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tomoscout.report.page import environment
from tomoscout.report.pictures import to_png
from tomoscout.tasks.instances.annotation_options import Normalisation
from tomoscout.tasks.instances.check_pictures import LONGEST_SIDE, outline
from tomoscout.tasks.instances.model import CellModel
from tomoscout.tasks.instances.prepare import normalise, rescaled_shape, resize_labels
from tomoscout.tasks.instances.scores import IOU, Overlaps, score

FOUND, MISSED, FALSE, ANNOTATED = (90, 220, 90), (255, 60, 60), (255, 150, 0), (0, 200, 255)
"""Colours of outlines: found objects that match, annotated ones that none matches, found ones that match none, and
annotated ones that are matched."""


@dataclass(frozen=True)
class Shown:
    """An image with what was found (*space) and what was annotated (*space)."""

    name: str
    channel: NDArray[Any]
    found: NDArray[np.int32]
    annotated: NDArray[np.int32]
    overlaps: Overlaps

    @property
    def picture(self) -> str:
        """The name of its picture, in the folder of its source."""
        return f"{self.name}.png"

    @property
    def text(self) -> str:
        """What there is to say of it."""
        half = score([self.overlaps], IOU[0])
        return (
            f"{half.matched} of {half.annotated} objects found, {half.found - half.matched} false; "
            f"{self.overlaps.merges} merges, {self.overlaps.splits} splits"
        )


def compared(image: Shown) -> bytes:
    """A PNG of the image with the outlines of annotated and found objects."""
    height, width = rescaled_shape(image.channel.shape, LONGEST_SIDE / max(image.channel.shape))
    grey = Image.fromarray(normalise(image.channel, Normalisation(clip=True)))
    pixels = np.asarray(grey.resize((width, height), Image.Resampling.BOX))
    drawn = np.repeat((255 * pixels).astype(np.uint8)[..., None], 3, axis=2)
    layers = (
        (image.annotated, image.overlaps.matched > IOU[0], ANNOTATED),
        (image.found, image.overlaps.hit > IOU[0], FOUND),
        (image.found, image.overlaps.hit <= IOU[0], FALSE),
        # What is missed lies on top: false objects often lie on it.
        (image.annotated, image.overlaps.matched <= IOU[0], MISSED),
    )
    for labels, chosen, colour in layers:
        names = np.unique(labels[labels > 0])
        resized = resize_labels(labels, (height, width))
        drawn[outline(resized) & np.isin(resized, names[chosen])] = colour
    return to_png(Image.fromarray(drawn))


def score_page(
    model: CellModel, scores: Mapping[str, Any], warnings: Sequence[str], shown: Sequence[Shown], folder: Path
) -> str:
    """The page as HTML, whose pictures lie beside it in the folder `pictures`. `folder`: that of the model."""
    history = folder / "history.png"
    page: str = (
        environment()
        .get_template("cell_scores.html.jinja")
        .render(
            model=model,
            scores=scores,
            warnings=warnings,
            shown=shown,
            history=base64.b64encode(history.read_bytes()).decode() if history.exists() else None,
            colours={"found": FOUND, "missed": MISSED, "false": FALSE, "annotated": ANNOTATED},
        )
    )
    return page
