"""Commands for instances of cells in images, from annotated images to labels."""

from __future__ import annotations

from pathlib import Path

import click

from tomoscout.cli.common import (
    FILE,
    Commands,
    batch_option,
    config_option,
    configured,
    load,
    model_option,
    output_option,
    resumable,
    share_cores,
    threads_option,
)
from tomoscout.machine.lease import leased_gpu
from tomoscout.machine.locks import alone_in
from tomoscout.networks.quick_monai import import_monai

commands = Commands()

division_option = click.option("--division", type=FILE, required=True, help="The division of the annotated images.")


@commands.command()
@click.argument("folder", type=FILE)
@click.option("--images", type=click.IntRange(min=2), default=24, show_default=True, help="Number of images.")
@click.option("--size", type=click.IntRange(min=64), default=192, show_default=True, help="Their height and width.")
@click.option("--images-alone", type=FILE, help="Folder for four more images, without annotations.")
@click.option("--seed", type=int, default=42, show_default=True, help="Seed of everything random.")
def phantom_cells(folder: Path, images: int, size: int, images_alone: Path | None, seed: int) -> None:
    """Write annotated images of made-up cells into FOLDER, as an export of annotations has them."""
    from tomoscout.tasks.instances.made_up import make_annotations, make_images

    make_annotations(folder, images, (size, size), seed)
    if images_alone:
        make_images(images_alone, 4, (size, size), seed)
    click.echo(folder)


@commands.command()
@config_option
@output_option
def check_annotations(config: Path, output: Path) -> None:
    """Check annotated images. OUTPUT is a page to look through; a table and pictures are written beside it."""
    from tomoscout.options.config import load_config
    from tomoscout.stages.check_annotations import run_check_annotations

    run_check_annotations(load_config(config), output.parent)


@commands.command()
@config_option
@output_option
def divide_cells(config: Path, output: Path) -> None:
    """Divide annotated images into those that train, that choose the model, and that test it."""
    from tomoscout.options.config import load_config
    from tomoscout.stages.divide_cells import run_divide_cells

    run_divide_cells(load_config(config), output)


@commands.command()
@config_option
@division_option
@model_option
@threads_option
def train_cells(config: Path, division: Path, model: Path, threads: int | None) -> None:
    """Train a network. Stopped or killed, the same command goes on from the last checkpoint."""
    from tomoscout.options.config import load_config

    settings = load_config(config)
    options = settings.cells.train
    if options.backend != "tomoscout":
        with alone_in(model), leased_gpu(options.computes_on), resumable(model, "checkpoint"):
            from tomoscout.stages.train_backend import run_train_backend

            run_train_backend(settings, division, model, threads)
        return
    with alone_in(model), leased_gpu(options.device), resumable(model):
        from tomoscout.stages.train_cells import run_train_cells

        run_train_cells(settings, division, model, threads)


@commands.command()
@config_option
@division_option
@model_option
@output_option
@threads_option
def evaluate_cells(config: Path, division: Path, model: Path, output: Path, threads: int | None) -> None:
    """Score a model on the test images. A page, tables and pictures are written beside OUTPUT."""
    from tomoscout.options.config import load_config

    settings = load_config(config)
    with leased_gpu(settings.cells.segment.device):
        share_cores()
        import_monai()
        from tomoscout.stages.evaluate_cells import run_evaluate_cells

        run_evaluate_cells(settings, division, model, output, threads)


@commands.command()
@config_option
@model_option
@output_option
def export_cells(config: Path, model: Path, output: Path) -> None:
    """Write the package of bioimage.io of a model."""
    from tomoscout.options.config import load_config

    options = load_config(config).cells.export
    import_monai()
    from tomoscout.stages.export_cells import run_export_cells

    run_export_cells(options, model, output)


@commands.command()
@config_option
@model_option
@output_option
@threads_option
def segment_cells(config: Path, model: Path, output: Path, threads: int | None) -> None:
    """Segment images; labels and a table of objects are written beside each."""
    from tomoscout.options.config import load_config

    cells = load_config(config).cells
    with leased_gpu(cells.segment.device):
        share_cores()
        import_monai()
        from tomoscout.stages.segment_cells import run_segment_cells

        run_segment_cells(cells.segment, model, output, threads, cells.train.python)


@commands.command()
@configured
@model_option
@batch_option
@output_option
@threads_option
def segment_instances(
    config: Path, inventory: Path, model: Path, batch: int, output: Path, threads: int | None
) -> None:
    """Find instances in the tomograms of a batch of runs, and write them as segmentations."""
    plan = load(config, inventory)
    with leased_gpu(plan.config.cells.segment.device):
        share_cores()
        import_monai()
        from tomoscout.stages.segment_instances import run_segment_instances

        run_segment_instances(plan, model, batch, output, threads)
