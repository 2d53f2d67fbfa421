"""The stage that applies a model of instances to images, and writes labels and a table of objects beside each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tomoscout.data.image_names import ending_of
from tomoscout.data.label_images import read_image, write_labels
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import read_json, write_json, write_table
from tomoscout.machine.messages import say
from tomoscout.machine.progress import Progress
from tomoscout.tasks.instances.annotation_files import WRITTEN, images_of
from tomoscout.tasks.instances.backends.applied import Applied, applied_model, read_cell_model
from tomoscout.tasks.instances.objects import object_table
from tomoscout.tasks.instances.options import CellSegment


def run_segment_cells(
    options: CellSegment, folder: Path, output: Path, threads: int | None = None, python: str | None = None
) -> None:
    """Segment all images of `cells.segment.images` with the model in `folder`. Labels and a table are written beside an
    image as `{image}_{model}`, never over files that this stage did not write. `output`, the list of them, is written
    last.

    Args:
        python: that of a back end, see `cells.train.python`.

    Raises:
        TomoscoutError: there is no image, one cannot be read, or a file of others is in the way.
    """
    if threads:
        torch.set_num_threads(threads)
    model = read_cell_model(folder)
    images = images_of(options.images, output.parent)
    places = [_place(path, model.name, options.format) for path in images]
    twice = [place for place, count in Counter(places).items() if count > 1]
    if twice:
        path = images[places.index(twice[0])]
        raise TomoscoutError(f"{path}: another image has the same name; its labels would be {twice[0]}, too")
    _claim(output.with_name(f"{output.stem}{WRITTEN}"), places)
    progress = Progress(len(images))
    entries = []
    with applied_model(folder, options.device, python) as applied:
        for number, (path, place) in enumerate(zip(images, places, strict=True), 1):
            entries.append(_segment(applied, path, place, options))
            progress.show(number, f"{number} of {len(images)} images segmented")
    write_json(output, {"model": str(folder), "weights": model.weights_digest, "images": entries})
    say(f"{len(images)} images, {sum(entry['objects'] for entry in entries)} objects")


def _place(path: Path, model: str, ending: str) -> Path:
    stem = path.name.removesuffix(ending_of(path) or "")
    return path.with_name(f"{stem}_{model}.{'ome.zarr' if ending == 'zarr' else 'tif'}")


def _table(place: Path) -> Path:
    return place.with_name(f"{place.name.removesuffix('.tif').removesuffix('.ome.zarr')}.csv")


def _claim(record: Path, places: Sequence[Path]) -> None:
    """Refuse to write over what is not in the record of written files, and add all places to it before the first is
    written: a run that was killed finds its own files again."""
    ours = set(read_json(record)) if record.exists() else set()
    places = [file for place in places for file in (place, _table(place))]
    for place in places:
        if place.exists() and str(place) not in ours:
            raise TomoscoutError(f"{place}: already there, and not by this stage; move it, or name the model otherwise")
    write_json(record, sorted({*ours, *map(str, places)}))


def _segment(applied: Applied, path: Path, place: Path, options: CellSegment) -> dict[str, Any]:
    model = applied.model
    image = read_image(path, model.dimensions)
    names = options.channels or ([] if len(image) > 1 else list(model.inputs[:1]))
    if len(names) != len(image):
        raise TomoscoutError(
            f"cells.segment.channels: {', '.join(names) or 'none'}, but {path} has {len(image)} channels; name them in "
            f"order (the model takes {', '.join(model.inputs)})"
        )
    if options.calibration is None and model.calibration is not None:
        raise TomoscoutError(
            f"cells.segment.calibration: not given, but the model works at {model.calibration:g} µm per pixel; give "
            "that of the images"
        )
    there = {name.lower(): number for number, name in enumerate(names)}
    numbers = [there.get(name.lower()) for name in model.inputs]
    if not any(number is not None for number in numbers):
        raise TomoscoutError(
            f"cells.segment.channels: {', '.join(names)}, but the model takes {', '.join(model.inputs)}: it would see "
            f"nothing of {path}"
        )
    labels = applied.labels(image, numbers, options.calibration)
    write_labels(place, labels, options.calibration)
    columns, rows = object_table(labels, image, names, options.calibration)
    table = _table(place)
    write_table(table, columns, rows)
    return {"image": str(path), "labels": str(place), "table": str(table), "objects": len(rows)}
