import os
import re

from snakemake.exceptions import WorkflowError
from tomoscout.errors import TomoscoutError
from tomoscout.workflow import Workflow

if not config and os.path.exists("config/config.yaml"):

    configfile: "config/config.yaml"


def stop_with(message):
    """End with one line instead of a traceback."""
    raise WorkflowError(message)


def guarded(function):
    """An input or params function whose foreseen errors end in one line."""

    def wrapper(wildcards):
        try:
            return function(wildcards)
        except TomoscoutError as error:
            stop_with(str(error))

    return wrapper


if not config:
    stop_with("no configuration: give one with --configfile my.yaml (config/README.md shows the least it needs)")

try:
    flow = Workflow(
        config,
        workflow.pathvars.apply("<results>"),
        main=workflow.is_main_process,
        files=workflow.configfiles,
    )
except TomoscoutError as error:
    stop_with(str(error))

TARGETS = f"<results>/targets/{flow.config.targets.name}"
SPLIT = f"<results>/splits/{flow.config.split.name}.json"
MODEL = "<results>/models/{model}"
STUDY = "<results>/explore/{study}"
TRAINED = f"<results>/models/{flow.config.train.name}"
SEGMENTED = f"<results>/segment/{flow.config.session}"
LOCALIZED = f"<results>/localize/{flow.config.session}"
SCORES = f"<results>/evaluate/{flow.config.session}"
REPORT = f"<results>/report/{flow.config.session}.html"

# Where a GPU is wanted, a cluster gives each job one.
GPU_FOR_TRAINING = int(flow.config.train.device != "cpu")
GPU_FOR_SEGMENTING = int(flow.config.segment.device != "cpu")


def batch_files(folder, batches):
    """The manifests of a stage's batches."""
    # Path variables in what an input function returns would not be those of an importing workflow.
    folder = folder.replace("<results>", str(flow.results))
    return [f"{folder}/batch-{batch}.json" for batch in batches]


def model_files(folders):
    """The files that make folders models."""
    return [f"{folder}/model.yaml" for folder in folders]


def study_files(*names):
    """Files of the configuration's study."""
    return guarded(lambda wildcards: [f"{flow.study_folder}/{name}" for name in names])


def before_trial(wildcards):
    """What a proposal waits for. Its trial reads the same, which somebody may have removed."""
    folder = f"{flow.results}/explore/{wildcards.study}"
    ask, result = flow.trials_before(wildcards.trial)
    files = {}
    if ask:
        files["before"] = ancient(f"{folder}/{ask}/ask.json")
    if result:
        files["told"] = ancient(f"{folder}/{result}/result.json")
    return files


def folders_of(files):
    """The folders of files."""
    return [os.path.dirname(file) for file in files]


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
    model=re.escape(flow.config.train.name) + r"(-fold-\d+)?",


container: flow.config.container
