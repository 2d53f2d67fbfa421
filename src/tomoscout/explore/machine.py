"""Which trainings fit into the memory that the configuration states, found out without the machine."""

from __future__ import annotations

from pathlib import Path

from tomoscout.explore.study import Misfit
from tomoscout.learning.options import Train
from tomoscout.machine.errors import TomoscoutError
from tomoscout.plan.folds import training_tomograms
from tomoscout.plan.plan import Plan


def misfit_of(plan: Plan) -> Misfit:
    """Tells of trainings that need more memory than `train.gpu_memory_gb` (on a CPU `train.memory_gb`) states. Without
    it, none are told of."""
    config, runs = plan.config, plan.fold()
    on_cpu = config.train.device == "cpu"
    stated = config.train.memory_gb if on_cpu else config.train.gpu_memory_gb
    if stated is None:
        return lambda options: None
    training = [record.tomograms[uri] for record, uri in training_tomograms(config, plan.records, runs)]
    validation = [plan.by_key[key].tomograms[config.segment_tomogram] for key in runs.validate]

    def misfit(options: Train) -> str | None:
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
            head = PickingHead(plan.targets.classes, config.voxel_spacing, options)
            plan_training(
                build_network(options.network, head.outputs),
                head.loss(Storage("files", device, len(plan.targets.classes), Path()).ignore),
                options,
                training,
                validation,
                classes=len(plan.targets.classes),
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
