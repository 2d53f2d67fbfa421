"""The page of a model's scores: tables, curves of the training, and the worst images."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tomoscout.report.page import environment
from tomoscout.report.pictures import to_png
from tomoscout.tasks.instances.annotation_options import Normalisation
from tomoscout.tasks.instances.backends.model import BackendModel
from tomoscout.tasks.instances.check_pictures import LONGEST_SIDE, outline
from tomoscout.tasks.instances.model import CellModel
from tomoscout.tasks.instances.prepare import normalise, rescaled_shape, resize_labels
from tomoscout.tasks.instances.shown import Shown

FOUND, MISSED, FALSE, ANNOTATED = (90, 220, 90), (255, 60, 60), (255, 150, 0), (0, 200, 255)
"""Colours of outlines: found objects that match, annotated ones that none matches, found ones that match none, and
annotated ones that are matched."""
GAP = 8
"""Pixels between two pictures."""


def compared(image: Shown) -> bytes:
    """A PNG of the image with the outlines of annotated and found objects."""
    return to_png(Image.fromarray(_drawn(image)))


def side_by_side(images: Sequence[Shown]) -> bytes:
    """A PNG of several images with the outlines of annotated and found objects."""
    drawn = [_drawn(image) for image in images]
    height = max(picture.shape[0] for picture in drawn)
    gap = np.full((height, GAP, 3), 255, np.uint8)
    padded = [np.pad(picture, ((0, height - len(picture)), (0, 0), (0, 0))) for picture in drawn]
    return to_png(Image.fromarray(np.hstack([part for picture in padded for part in (picture, gap)][:-1])))


def _drawn(image: Shown) -> NDArray[np.uint8]:
    height, width = rescaled_shape(image.channel.shape, LONGEST_SIDE / max(image.channel.shape))
    grey = Image.fromarray(normalise(image.channel, Normalisation(clip=True)))
    pixels = np.asarray(grey.resize((width, height), Image.Resampling.BOX))
    drawn = np.repeat((255 * pixels).astype(np.uint8)[..., None], 3, axis=2)
    layers = (
        (image.annotated, image.matched, ANNOTATED),
        (image.found, image.hit, FOUND),
        (image.found, image.false, FALSE),
        # What is missed lies on top: false objects often lie on it.
        (image.annotated, image.missed, MISSED),
    )
    for labels, chosen, colour in layers:
        resized = resize_labels(labels, (height, width))
        drawn[outline(resized) & np.isin(resized, chosen)] = colour
    return drawn


def score_page(
    model: CellModel | BackendModel,
    scores: Mapping[str, Any],
    warnings: Sequence[str],
    shown: Sequence[Shown],
    folder: Path,
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
