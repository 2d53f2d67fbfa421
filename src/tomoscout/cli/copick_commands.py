"""The commands named `tomoscout` in copick's own command line: `copick training tomoscout` and so on.

copick loads this module whenever it starts, through the entry points in pyproject.toml: what is slow is imported inside
functions, except for copick, which is loaded already.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click
from copick.cli.util import resolve_run_names

from tomoscout.cli.common import resumable, share_cores
from tomoscout.cli.copick_options import (
    CopickCommand,
    common_options,
    picks_option,
    segmentation_option,
    settings,
    tomogram_option,
    written_as,
)
from tomoscout.data.formats import FORMATS
from tomoscout.machine.lease import leased_gpu
from tomoscout.networks.quick_monai import import_monai
from tomoscout.plan.paths import Results
from tomoscout.tasks.picking.extraction.options import Kind


@click.command("tomoscout", cls=CopickCommand, short_help="Train a network to find particles.")
@common_options
@tomogram_option("those to train on. Repeatable: a batch mixes all", multiple=True)
@picks_option("--picks", "Picks to learn from")
@click.option("--name", help="Name of the model, a folder in models/ of --output. Default: unet.")
@click.option("--steps", type=int, help="Optimiser updates.")
def training(
    picks: str | list[str],
    name: str | None,
    steps: int | None,
    run_names: tuple[str, ...],
    output: Path,
    **project: Any,
) -> None:
    """Train a network to find particles. Targets are made of the picks, and the runs that have some are divided into
    training, validation and test runs. A training that was stopped goes on from its last checkpoint with the same
    command.

    \b
    copick training tomoscout -c copick.json --tomogram wbp@10.0 --picks alice/1 --name ribosomes
    copick training tomoscout -c copick.json --tomogram wbp@10.0 --picks alice/1 --set split.ratios=0.8
    """
    from tomoscout.api import create_targets, train

    runs = resolve_run_names(run_names)
    options = {"targets.picks": picks, "targets.runs": runs, "train.name": name, "train.steps": steps}
    config = settings(options, **project)
    create_targets(config, output)
    with leased_gpu(config.train.device), resumable(Results(output).model(config.train.name)):
        click.echo(train(config, output).folder)


@click.command("tomoscout", cls=CopickCommand, short_help="Find particles with a trained network.")
@common_options
@tomogram_option("those to segment")
@click.option(
    "--model",
    "models",
    multiple=True,
    required=True,
    help="Folder of a model, or octopi's model_config.yaml. Repeatable: several are an ensemble.",
)
@written_as("the name of the model")
def inference(
    models: tuple[str, ...],
    run_names: tuple[str, ...],
    user_id: str | None,
    session_id: str | None,
    output: Path,
    **project: Any,
) -> None:
    """Find particles with a trained network: writes class probabilities, labels, and picks with scores.

    \b
    copick inference tomoscout -c copick.json --tomogram wbp@10.0 --model results/models/ribosomes
    """
    from tomoscout.api import localize, segment

    names = {"localize.user": user_id, "localize.session": session_id}
    options = {"segment.models": list(models), "segment.runs": resolve_run_names(run_names), **names}
    config = settings(options, **project)
    share_cores()
    with leased_gpu(config.segment.device):
        import_monai()
        segment(config, output)
    localize(config, output)


def _owners(context: click.Context, parameter: click.Parameter, uris: tuple[str, ...]) -> list[str]:
    """Users and sessions, as `user/session`."""
    owners = [uri.removeprefix("*:") for uri in uris]
    if any(":" in owner for owner in owners):
        raise click.BadParameter("expected user/session; the objects that are scored are those of --reference")
    return owners


@click.command("tomoscout", cls=CopickCommand, short_help="Score picks against reference picks.")
@common_options
@tomogram_option("reference picks outside of it do not count")
@picks_option("--reference", "The reference picks, which are taken as true")
@click.option(
    "--predicted",
    multiple=True,
    required=True,
    metavar="USER/SESSION",
    callback=_owners,
    help="The picks to score, whoever made them. Repeatable: a table for each.",
)
def evaluation(
    reference: str | list[str], predicted: list[str], run_names: tuple[str, ...], output: Path, **project: Any
) -> None:
    """Score picks against reference picks: precision, recall, F-beta and average precision per object, with intervals
    of the bootstrap over runs. Scored are all runs that have reference picks. The tables are also written, into
    evaluate/ of --output.

    \b
    copick evaluation tomoscout -c copick.json --tomogram wbp@10.0 --reference alice/1 --predicted tomoscout/unet
    copick evaluation tomoscout -c copick.json --tomogram wbp@10.0 --reference ribosome:alice/1 \\
        --predicted octopi/1 --predicted bob/1 --set evaluate.distance=0.8 --set evaluate.beta=1
    """
    from tomoscout.api import score_picks

    first, *others = predicted
    options = {"evaluate.reference": reference, "evaluate.also": others, "segment.runs": resolve_run_names(run_names)}
    score_picks(settings(options, **project), first, output)


@click.group("tomoscout", short_help="Picks of a segmentation, or chosen by their surroundings.")
def process() -> None:
    """Make picks of a segmentation, or choose picks by their surroundings."""


@process.command("localize", cls=CopickCommand, short_help="Picks of a segmentation.")
@common_options
@tomogram_option("a segmentation of its voxel spacing is taken, or else the finest")
@segmentation_option("The multilabel segmentation, whoever made it", required=True)
@click.option("--object", "objects", multiple=True, help="Look for this object. Repeatable. Default: all particles.")
@click.option("--method", type=click.Choice(["components", "watershed"]), help="Watershed, the default, parts regions.")
@click.option("--smallest", type=float, help="Leave out regions with less volume than a sphere of so many radii.")
@click.option("--largest", type=float, help="Leave out regions with more volume than a sphere of so many radii.")
@written_as("that of the segmentation, with its name and user")
def localize_segmentation(
    segmentation: str,
    objects: tuple[str, ...],
    method: str | None,
    smallest: float | None,
    largest: float | None,
    run_names: tuple[str, ...],
    user_id: str | None,
    session_id: str | None,
    output: Path,
    **project: Any,
) -> None:
    """Make a pick, with a score, of each region of a label. Labels are those of the objects in copick's configuration.

    \b
    copick process tomoscout localize -c copick.json --tomogram wbp@10.0 --segmentation predicted:octopi/1
    """
    from tomoscout.api import localize

    own = {"segmentation": segmentation, "objects": list(objects) or None, "method": method, "smallest": smallest}
    own |= {"largest": largest, "user": user_id, "session": session_id}
    options = {f"localize.{key}": value for key, value in own.items()}
    localize(settings({**options, "segment.runs": resolve_run_names(run_names)}, **project), output)


@process.command("extract", cls=CopickCommand, short_help="Picks chosen by their surroundings.")
@common_options
@tomogram_option("a segmentation of its voxel spacing is taken, or else the finest")
@click.option("--kind", type=click.Choice(get_args(Kind)), required=True, help="How they are chosen.")
@picks_option("--picks", "Picks to choose from", required=False)
@segmentation_option("The segmentation: a membrane, an organelle", required=False)
@click.option("--label", help="Object, or number, of a label of a multilabel segmentation. Default: all that is not 0.")
@click.option(
    "--distance", type=float, multiple=True, help="Largest distance in Å; given twice, the smallest and the largest."
)
@click.option("--orient", is_flag=True, help="Turn picks so that their z axis is the normal of the surface.")
@picks_option("--partners", "Other picks, for neighbours and midpoints", required=False)
@written_as("the kind")
def extract_picks(
    kind: str,
    picks: str | list[str] | None,
    segmentation: str | None,
    label: str | None,
    distance: tuple[float, ...],
    orient: bool,
    partners: str | list[str] | None,
    run_names: tuple[str, ...],
    user_id: str | None,
    session_id: str | None,
    output: Path,
    **project: Any,
) -> None:
    """Choose picks by their surroundings, into a session of their own. Tables of distances go to extract/ of --output.

    near, inside, outside: by their distance to the surface of a segmentation. mask: in a segmentation. neighbours: near
    other picks. midpoints: the middles of pairs. label: a label of a segmentation, as a segmentation of its own.

    \b
    copick process tomoscout extract -c copick.json --tomogram wbp@10.0 --kind near --picks ribosome:tomoscout/unet \\
        --segmentation membrane:alice/1 --distance 150 --orient
    """
    from tomoscout.api import extract

    limits = list(distance) if len(distance) > 1 else next(iter(distance), None)
    own = {"kind": kind, "picks": picks, "segmentation": segmentation, "label": label, "distance": limits}
    own |= {"orient": orient or None, "partners": partners, "runs": resolve_run_names(run_names)}
    own |= {"user": user_id, "session": session_id}
    options = {f"extract.{kind}.{key}": value for key, value in own.items()}
    extract(settings(options, **project), output)


@click.command("tomoscout", cls=CopickCommand, short_help="Write picks in formats of other programs.")
@common_options
@tomogram_option("some programs count in its voxels, or from its centre")
@picks_option("--picks", "Picks to write")
@click.option(
    "--format", "formats", type=click.Choice(list(FORMATS)), multiple=True, required=True, help="Format. Repeatable."
)
@click.option("--threshold", type=float, help="Leave out picks with a lower score.")
@click.option("--per-run", is_flag=True, help="A file for each run, not one for all.")
@click.option("--tomograms-star", help="RELION's tomograms.star, with unbinned sizes and pixel sizes.")
def convert(
    picks: str | list[str],
    formats: tuple[str, ...],
    threshold: float | None,
    per_run: bool,
    tomograms_star: str | None,
    run_names: tuple[str, ...],
    output: Path,
    **project: Any,
) -> None:
    """Write picks as RELION, Warp, Dynamo, IMOD, EMAN2 and others read them, into export/ of --output. The file
    export.json beside them says what their coordinates refer to.

    \b
    copick convert tomoscout -c copick.json --tomogram wbp@10.0 --picks alice/1 --format relion5 --format dynamo
    """
    from tomoscout.api import export

    own = {"picks": picks, "formats": list(formats), "threshold": threshold, "per_run": per_run or None}
    own |= {"tomograms_star": tomograms_star, "runs": resolve_run_names(run_names)}
    export(settings({f"export.{key}": value for key, value in own.items()}, **project), output)
