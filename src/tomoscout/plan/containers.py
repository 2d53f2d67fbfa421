"""What the rules run in with `--sdm apptainer`: the image of each group of rules, and the folders that it must see."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path

from tomoscout.data.copick_config import local_roots
from tomoscout.machine.errors import TomoscoutError
from tomoscout.options.config import Config, RuleGroup
from tomoscout.plan.code import CODE, code

IMAGES: dict[RuleGroup, str] = {
    "light": "tomoscout-light.sif",
    "network": "tomoscout.sif",
    "cells": "tomoscout-cells.sif",
    "stardist": "tomoscout-stardist.sif",
    "cellpose": "tomoscout-cellpose.sif",
}
"""The images that `containers/build.py` builds, by group of rules: `network` has all packages, `light` those of the
stages that use no network, `cells` what the star head needs besides; those of the back ends have their package besides,
in an environment of its own."""

_SCRATCH = ("TMPDIR", "TOMOSCOUT_LOCK_FOLDER")
_OWN = ["", "bin", "boot", "dev", "etc", "lib", "lib64", "opt", "proc", "run", "sbin", "sys", "usr", "var"]
_HIDING = {Path(f"/{name}") for name in _OWN}
_DRIVER = Path("/dev/nvidiactl")


def image_of(config: Config, group: RuleGroup, folder: Path) -> str:
    """The image of a group of rules: a file, or an address in a registry. `folder`: where `make image` writes."""
    if isinstance(config.container, str):
        return config.container
    return (config.container or {}).get(group) or str(folder / IMAGES[group])


def enter_images(
    config: Config,
    images: Iterable[str],
    results: Path,
    environment: MutableMapping[str, str] = os.environ,
    driver: Path = _DRIVER,
) -> None:
    """Let Apptainer bind what the configuration names, and pass the GPU where this machine has one, by variables of the
    environment. Binds of the user's own are kept.

    Args:
        images: the images of all rules.
        results: folder of the results.
        environment: to be changed.
        driver: a file that there is where there is a GPU.

    Raises:
        TomoscoutError: an image is not there, a folder cannot be bound, or a copick config cannot be read.
    """
    for image in images:
        if "://" not in image and not Path(image).exists():
            raise TomoscoutError(f"{image}: no such image; build it (make image), or name another under container")
    prefix = "APPTAINER" if shutil.which("apptainer") or not shutil.which("singularity") else "SINGULARITY"
    named = [*_named(config, environment), results]
    own = environment.get(f"{prefix}_BIND", "").split(",")
    environment[f"{prefix}_BIND"] = ",".join(dict.fromkeys(bind for bind in [*own, *bound(named)] if bind))
    if driver.exists():
        environment[f"{prefix}_NV"] = "true"
    environment[CODE] = code()


def bound(paths: Iterable[Path]) -> list[str]:
    """The files and folders to bind, so that all paths are in the container what they are outside. For one that does
    not exist yet its nearest folder is bound.

    Raises:
        TomoscoutError: it would hide folders of the image, or its name cannot be passed to Apptainer.
    """
    # A path through links needs the place that it leads to, too.
    places = {place for path in paths for place in (_existing(path.absolute()), _existing(path.resolve()))}
    for place in places:
        if place in _HIDING:
            raise TomoscoutError(f"{place} would hide what an image has there; use a folder below it")
        if {",", ":"} & {*str(place)}:
            raise TomoscoutError(f"{place}: a folder with a comma or colon in its name cannot be bound into an image")
    return sorted(str(place) for place in places if places.isdisjoint(place.parents))


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())


def _named(config: Config, environment: Mapping[str, str]) -> Iterator[Path]:
    """The paths that a configuration names, the folders of its projects, and scratch folders."""
    for text in _texts(config.model_dump(mode="json")):
        # Of a pattern the folder before it.
        path = Path(re.sub(r"[^/]*[*?\[].*", "", text.removeprefix("sqlite:///")))
        if "/" in text and "://" not in str(path) and _is_there(path):
            yield path
    for project in map(Path, config.projects.values()):
        if project.exists():
            yield from local_roots(project) or []
    yield from (Path(environment[name]) for name in _SCRATCH if environment.get(name))


def _is_there(path: Path) -> bool:
    try:
        return path.exists() and path != Path("/")
    except (OSError, ValueError):  # A text that can be no path.
        return False


def _texts(values: object) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _texts(value)
    elif isinstance(values, list):
        for value in values:
            yield from _texts(value)
