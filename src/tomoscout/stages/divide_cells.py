"""The stage that divides annotated images of cells into those that train, choose and test a model."""

from __future__ import annotations

from pathlib import Path

from tomoscout.machine.messages import say
from tomoscout.options.config import Config
from tomoscout.plan.folds import PARTS
from tomoscout.tasks.instances.annotations import find_annotations
from tomoscout.tasks.instances.division import divide, write_division


def run_divide_cells(config: Config, output: Path) -> None:
    """Write the division.

    Raises:
        TomoscoutError: the annotations cannot be used, or are too few to be divided.
    """
    annotations = find_annotations(config.cells, config.projects)
    division = divide(annotations, config.cells.division)
    write_division(output, division, annotations)
    say(", ".join(f"{part}: {len(division[part])} images" for part in PARTS))
