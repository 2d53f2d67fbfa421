"""Commands that apply a model, and choose among what it finds: `import-model`, `segment`, `localize`, `extract`."""

from __future__ import annotations

from pathlib import Path

import click

from tomoscout.cli.common import (
    FILE,
    Commands,
    batch_option,
    configured,
    load,
    model_option,
    models_option,
    output_option,
    share_cores,
    threads_option,
)
from tomoscout.machine.lease import leased_gpu
from tomoscout.networks.quick_monai import import_monai

commands = Commands()


@commands.command()
@click.argument("source", type=FILE)
@configured
@model_option
@threads_option
def import_model(source: Path, config: Path, inventory: Path, model: Path, threads: int | None) -> None:
    """Make a model folder of a model that octopi trained: SOURCE is its model_config.yaml, with best_model.pth."""
    share_cores()
    plan = load(config, inventory)
    with leased_gpu(plan.config.segment.device):
        import_monai()
        from tomoscout.stages.import_model import run_import_model

        run_import_model(plan, source, model, threads)


@commands.command()
@configured
@models_option
@batch_option
@output_option
@threads_option
def segment(
    config: Path, inventory: Path, models: tuple[Path, ...], batch: int, output: Path, threads: int | None
) -> None:
    """Apply a model, or several together, to tomograms."""
    share_cores()
    plan = load(config, inventory)
    with leased_gpu(plan.config.segment.device):
        import_monai()
        from tomoscout.stages.segment import run_segment

        run_segment(plan, models, batch, output, threads)


@commands.command()
@configured
@click.option("--model", "models", type=FILE, multiple=True, help="As for segment. None for a segmentation.")
@click.option("--segmented", type=FILE, help="Folder of the segment stage's manifests. None for a segmentation.")
@batch_option
@output_option
def localize(
    config: Path, inventory: Path, models: tuple[Path, ...], segmented: Path | None, batch: int, output: Path
) -> None:
    """Turn class probabilities, or the labels of a segmentation, into scored picks."""
    plan = load(config, inventory)
    if not plan.config.localize.segmentation and not (models and segmented):
        raise click.UsageError("--model and --segmented are needed without localize.segmentation")
    from tomoscout.stages.localize import run_localize

    run_localize(plan, models, segmented or plan.results.segment(plan.config.session), batch, output)


@commands.command()
@configured
@batch_option
@output_option
def extract(config: Path, inventory: Path, batch: int, output: Path) -> None:
    """Choose and orient particles by their surroundings, or part segmentations."""
    from tomoscout.stages.extract import run_extract

    run_extract(load(config, inventory), batch, output)
