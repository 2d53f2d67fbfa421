"""A plot of the losses of a back end's training."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from tomoscout.learning.history import series


def loss_curves(rows: Sequence[Mapping[str, float]]) -> bytes:
    """A PNG of `loss` and `val_loss` over `step`; values may be missing. Equal rows give equal bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(color="#e6e6e6")
    axes.spines[["top", "right"]].set_visible(False)
    for name, label, colour in (("loss", "training", "#0b7285"), ("val_loss", "validation", "black")):
        if points := series(rows, name):
            axes.plot(*zip(*points, strict=True), color=colour, label=label)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()
