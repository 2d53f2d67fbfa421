"""What Celldetective 1.6 looks for in a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LISTS = {"channels": str, "normalization_percentile": bool, "normalization_clip": bool, "normalization_values": list}
"""Lists with an entry for each input of the network, and the type of an entry."""
THRESHOLDS = {"diameter", "cellprob_threshold", "flow_threshold"}
FILES = {"stardist": {"config.json", "weights_best.h5", "thresholds.json"}}


def check_settings(settings: dict[str, Any]) -> None:
    """Check the keys and types of `config_input.json`."""
    assert settings["model_type"] in ("stardist", "cellpose")
    of_cellpose = THRESHOLDS if settings["model_type"] == "cellpose" else set()
    assert set(settings) == {*LISTS, "model_type", "spatial_calibration", "cell_size_um", "dataset", *of_cellpose}
    inputs = len(settings["channels"])
    for name, kind in LISTS.items():
        assert len(settings[name]) == inputs and all(type(entry) is kind for entry in settings[name]), name
    for low, high in settings["normalization_values"]:
        assert low < high
    assert type(settings["spatial_calibration"]) is float and type(settings["cell_size_um"]) is float
    assert set(settings["dataset"]) == {"train", "validation"}
    assert all(type(settings[name]) is float for name in of_cellpose)
    if of_cellpose:
        assert inputs >= 2


def check_folder(folder: Path) -> dict[str, Any]:
    """Check a model folder; returns the content of `config_input.json`."""
    settings: dict[str, Any] = json.loads((folder / "config_input.json").read_text())
    check_settings(settings)
    # Cellpose's model is a file with the name of the folder.
    for name in FILES.get(settings["model_type"], {folder.name}):
        assert (folder / name).is_file(), name
    if settings["model_type"] == "stardist":
        assert json.loads((folder / "config.json").read_text())["n_channel_in"] == len(settings["channels"])
        assert set(json.loads((folder / "thresholds.json").read_text())) == {"prob", "nms"}
    return settings
