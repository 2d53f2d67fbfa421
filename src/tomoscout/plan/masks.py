"""Masks: segmentations of a run outside of which nothing is segmented, or no picks are kept."""

from __future__ import annotations

from typing import Literal

from tomoscout.data.inventory import RunRecord
from tomoscout.data.written import Segmentation
from tomoscout.machine.errors import TomoscoutError
from tomoscout.options.config import Config
from tomoscout.options.names import Source
from tomoscout.plan.annotations import nearest_segmentation

Masked = Literal["segment", "localize"]
"""The sections that have an option `mask`."""


def mask_of(config: Config, record: RunRecord, section: Masked) -> Segmentation | None:
    """The mask of a run: the binary segmentation of that name, else the multilabel one, nearest to the voxel spacing of
    the tomogram. None where the section asks for none, or the run has none."""
    name = getattr(config, section).mask
    if name is None:
        return None
    source = Source.parse(name)
    found = (nearest_segmentation(source, record, config.voxel_spacing, multilabel=kind) for kind in (False, True))
    return next((entry for entry in found if entry is not None), None)


def required_mask(config: Config, record: RunRecord, section: Masked) -> Segmentation | None:
    """The mask of a run; None where the section asks for none.

    Raises:
        TomoscoutError: the run has none.
    """
    found, name = mask_of(config, record, section), getattr(config, section).mask
    if name is not None and found is None:
        have = ", ".join(record.segmentations) or "none"
        raise TomoscoutError(f"{record.key}: {section}.mask: no segmentation {name}; found: {have}")
    return found
