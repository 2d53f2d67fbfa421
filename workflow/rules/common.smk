import os
import re
import sys
from pathlib import Path

from snakemake.io import flag
from snakemake.logging import logger
from snakemake.path_modifier import PATH_MODIFIER_FLAG
from snakemake.settings.types import DeploymentMethod
from tomoscout.machine.at_work import begin_work, let_jobs_tell
from tomoscout.machine.errors import foreseen
from tomoscout.plan.paths import Results, batch_file
from tomoscout.workflow import Workflow

if not config and os.path.exists("config/config.yaml"):

    configfile: "config/config.yaml"


def stop_with(message):
    """End with one line."""
    # Of an exception in an input function Snakemake would tell the rule, the wildcards and where in which file it arose.
    logger.error(f"error: {message}")
    sys.exit(1)


def guarded(function):
    """A function whose foreseen errors end in one line."""

    def wrapper(*arguments):
        try:
            return function(*arguments)
        except Exception as error:
            message = foreseen(error)
            if message is None:
                raise
            stop_with(message)

    return wrapper


def make_folder(path):
    """Make a folder; where it cannot be made, Snakemake would say so with a traceback."""
    os.makedirs(path, exist_ok=True)


def whole(files):
    """Files whose paths are complete: nothing of a module's `prefix` comes before them again."""
    return [flag(PATHS.apply_default_storage(file), PATH_MODIFIER_FLAG) for file in files]


def files(function):
    """An input function."""
    find = guarded(function)
    return lambda wildcards: whole(find(wildcards))


if not config:
    stop_with("no configuration: give one with --configfile my.yaml (config/README.md shows the least it needs)")

# What a module's `prefix` does to paths.
PATHS = workflow.modifier.path_modifier
RESULTS, LOGS, BENCHMARKS = [
    workflow.pathvars.apply(PATHS.replace_prefix(folder)) for folder in ("<results>", "<logs>", "<benchmarks>")
]

let_jobs_tell()
if workflow.is_main_process and not workflow.output_settings.dryrun:
    guarded(begin_work)()
    for folder in LOGS, BENCHMARKS:
        guarded(make_folder)(folder)

flow = guarded(
    lambda: Workflow(
        config,
        RESULTS,
        main=workflow.is_main_process,
        files=workflow.configfiles,
        imported=not workflow.modifier.is_main_snakefile(),
    )
)()

SETTINGS, INVENTORY = str(flow.results.settings), str(flow.results.inventory)

# Files of rules, with wildcards and with what stands for the folder of the results.
MADE = Results(Path("<results>"))
TARGETS = str(MADE.targets(flow.config.targets.name))
OVERLAYS = str(MADE.overlays(flow.config.targets.name))
SPLIT = str(MADE.split(flow.config.split.name))
MODEL = str(MADE.model("{model}"))
STUDY = str(MADE.study("{study}"))
PRETRAINED = str(MADE.model(flow.config.pretrain.name))
TRAINED = str(MADE.model(flow.config.train.name))
CURVE = MADE.learning_curve(flow.config.train.name)
FOLDS = str(MADE.compared_folds(flow.config.train.name))
SEGMENTED = str(MADE.segment(flow.config.session))
LOCALIZED = str(MADE.localize(flow.config.session))
EXTRACTED = str(MADE.extract)
SCORES = str(MADE.evaluate(flow.config.session))
REPORT = str(MADE.report(flow.config.session))

# What rules run in, by group: `light` ones use no network. With `--sdm apptainer` an image, with `--sdm conda` an
# environment. A back end of instances of cells has one of its own.
REPOSITORY = Path(workflow.current_basedir).parents[1]
IMAGES = {group: flow.image(group, REPOSITORY / "containers") for group in ("light", "network", flow.cell_group)}
ENVIRONMENTS = {group: f"../../envs/{group}.yaml" for group in IMAGES}
if DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method:
    guarded(flow.enter_images)(IMAGES.values())

# Where a GPU is wanted, a cluster gives each job one.
GPU_FOR_TRAINING = int(flow.config.train.device != "cpu")
GPU_FOR_SEGMENTING = int(flow.config.segment.device != "cpu")


def batch_files(folder, batches):
    """The manifests of a stage's batches."""
    folder = folder.replace("<results>", RESULTS)
    return [str(batch_file(Path(folder), batch)) for batch in batches]


def depends_on(stage):
    """What a job of a stage depends on besides its input files, as a param of its rule."""
    # A job is told apart by its only wildcard: a batch, or a model.
    return guarded(lambda wildcards: flow.depends_on(stage, *wildcards))


def model_files(folders):
    """The files that make folders models."""
    return [f"{folder}/model.yaml" for folder in folders]


def study_files(search, *names):
    """Files of the study of a search."""
    return files(lambda wildcards: [f"{search.folder}/{name}" for name in names])


def before_trial(search):
    """An input function: what a proposal waits for. Its trial reads the same, which a user may have removed."""

    def find(wildcards):
        folder = flow.results.study(wildcards.study)
        ask, result = search.trials_before(wildcards.trial)
        found = {}
        if ask:
            found["before"] = ancient(whole([f"{folder}/{ask}/ask.json"]))
        if result:
            found["told"] = ancient(whole([f"{folder}/{result}/result.json"]))
        return found

    return guarded(find)


def folders_of(paths):
    """The folders of files."""
    return [os.path.dirname(path) for path in paths]


def all_but(names, pattern=r"[^/]+"):
    """The pattern of a folder's name, some names left out."""
    return rf"(?!(?:{'|'.join(map(re.escape, names))})/){pattern}" if names else pattern


def options(name, values):
    """An option of a command, once for each value."""
    return [word for value in values for word in (name, str(value))]


def megabytes(amount):
    """Memory that grows with every attempt."""
    return lambda wildcards, attempt: amount * attempt


def minutes(amount):
    """Time that grows with every attempt."""
    return lambda wildcards, attempt: amount * attempt


wildcard_constraints:
    batch=r"\d+",
    imported="|".join(map(re.escape, flow.imported)) or r"(?!)",
    model=flow.model_names,
