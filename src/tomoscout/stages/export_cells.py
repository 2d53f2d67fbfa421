"""The stage that makes a package of bioimage.io of a model of instances."""

from __future__ import annotations

from pathlib import Path

import torch

from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.messages import say
from tomoscout.models.folder import load_network
from tomoscout.tasks.instances.backends.applied import read_cell_model
from tomoscout.tasks.instances.bioimage import write_package
from tomoscout.tasks.instances.model import CellModel
from tomoscout.tasks.instances.options import CellExport


def run_export_cells(options: CellExport, folder: Path, output: Path) -> None:
    """Write the package of the model in `folder`.

    Raises:
        TomoscoutError: the model cannot be used, is one of a back end, nobody is named as its author, or a library is
            missing.
    """
    model = read_cell_model(folder)
    if not isinstance(model, CellModel):
        raise TomoscoutError(f"{folder}: {model.kind} is not exported; its own package reads the folder")
    if not options.authors:
        raise TomoscoutError("cells.export.authors: nobody; bioimage.io wants to know who made a model")
    write_package(output, model, load_network(folder, model, torch.device("cpu")), options.authors, options.licence)
    say(f"{output}: {output.stat().st_size / 1e6:.1f} MB")
