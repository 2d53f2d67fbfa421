"""Which trainings fit into the memory that the configuration states, found out without the machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tomoscout.data.inventory import RunRecord
from tomoscout.explore.study import Misfit
from tomoscout.learning.options import Training
from tomoscout.machine.errors import TomoscoutError
from tomoscout.options.config import Config
from tomoscout.plan.classes import TargetPlan
from tomoscout.plan.splits import Fold, training_tomograms


def misfit_of(config: Config, plan: TargetPlan, records: Sequence[RunRecord], runs: Fold) -> Misfit:
    """Tells of trainings that need more memory than `train.gpu_memory_gb` (on a CPU `train.memory_gb`) states. Without
    it, none are told of."""
    on_cpu = config.train.device == "cpu"
    stated = config.train.memory_gb if on_cpu else config.train.gpu_memory_gb
    if stated is None:
        return lambda options: None
    by_key = {record.key: record for record in records}
    training = [record.tomograms[uri] for record, uri in training_tomograms(config, records, runs)]
    validation = [by_key[key].tomograms[config.segment_tomogram] for key in runs.validate]

    def misfit(options: Training) -> str | None:
        import torch

        from tomoscout.learning.memory import Limits, plan_training
        from tomoscout.learning.volumes import Storage
        from tomoscout.networks import build_network
        from tomoscout.stages.train import resolve_options
        from tomoscout.tasks.picking.head import PickingHead
        from tomoscout.tasks.picking.validation import VALIDATION_OVERLAP, VALIDATION_TILE

        device = torch.device("cpu" if on_cpu else "cuda")
        try:
            options = resolve_options(options, None, training, validation)
            head = PickingHead(plan.classes, config.voxel_spacing, options)
            plan_training(
                build_network(options.network, head.outputs),
                head.loss(Storage("files", device, len(plan.classes), Path()).ignore),
                options,
                training,
                validation,
                classes=len(plan.classes),
                tile=VALIDATION_TILE,
                overlap=VALIDATION_OVERLAP,
                device=device,
                folder=Path(),
                labelled=head.needs_labels,
                limits=Limits.stated(options),
            )
        except TomoscoutError as error:
            return str(error)
        return None

    return misfit
