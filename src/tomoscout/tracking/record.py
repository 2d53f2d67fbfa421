"""The record of a training, read from its model folder."""

from __future__ import annotations

import contextlib
import getpass
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field

from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import read_table
from tomoscout.options.forms import checked, read_form

FINGERPRINT, MODEL, STUDY = "tomoscout.fingerprint", "tomoscout.model", "tomoscout.study"
"""Tags of a run of MLflow: the fingerprint and the name of the training, and the study of a trial."""

RATE = "steps_per_second"

NOT_OPTIONS = ("format", "name", "classes", "weights", "made_from", "made_with")
"""Keys of `model.yaml` that are not options. If there is no `training.json`, the others are recorded as parameters."""

LONGEST_VALUE = 6000
"""Largest number of characters of a parameter's value in MLflow."""

Curves = dict[str, dict[int, float]]
"""Name → step → value."""


@dataclass(frozen=True)
class Record:
    """A training as recorded in MLflow. `finished`: whether it has made a model. `ended`: when it ended, with or
    without a model; `written`: when its curves were written, both in seconds since 1970. `rate`: steps per second."""

    folder: Path
    name: str
    fingerprint: str
    finished: bool
    ended: float | None
    params: dict[str, str]
    tags: dict[str, str]
    curves: Curves
    rate: float | None
    written: float

    def moment(self, step: int) -> int:
        """The time of a step, in ms since 1970, estimated from when the curves were written and the rate."""
        behind = (_last_step(self.curves) - step) / self.rate if self.rate else 0.0
        return int(1000 * (self.written - behind))


def read_record(folder: Path) -> Record:
    """Read a model folder, finished or not.

    Reads `model.yaml`, `training.json`, `metrics.csv` and `results.json`; one of the first two must exist. A
    `model.yaml` with another fingerprint than `training.json` belongs to an earlier training and is ignored.

    Raises:
        TomoscoutError: the folder names no training, or a file cannot be read.
    """
    try:
        training = _read_training(folder / "training.json")
        model = _read_model(folder / "model.yaml")
        finished = bool(model) and training.get("fingerprint", model["fingerprint"]) == model["fingerprint"]
        facts = model | training if finished else training
        trial = _read_facts(folder / "result.json")
        if not {"name", "fingerprint"} <= facts.keys():
            raise TomoscoutError(f"{folder}: no training to record: neither model.yaml nor training.json names one")
        metrics = folder / "metrics.csv"
        curves = _read_curves(metrics, facts.get("classes", []))
        last = _last_step(curves)
        if finished:
            curves |= {name: {last: value} for name, value in _numbers(_read_facts(folder / "results.json"))}
        rate = facts.get(RATE) or None
        if rate:
            curves[RATE] = {last: rate}
        written = (metrics if metrics.exists() else folder).stat().st_mtime
        return Record(
            folder,
            facts["name"],
            facts["fingerprint"],
            finished,
            _ended(folder, finished),
            _params(facts),
            _tags(facts, folder, trial),
            curves,
            rate,
            written,
        )
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        what = " ".join(str(error).split())
        raise TomoscoutError(f"{folder}: not a model folder ({type(error).__name__}: {what})") from None


def _last_step(curves: Curves) -> int:
    return max((step for points in curves.values() for step in points), default=0)


class _Facts(BaseModel):
    """The entries of `training.json` that are read; each may be missing."""

    name: str = ""
    fingerprint: str = ""
    classes: list[str] = []
    train: list[str] = []
    validate_: list[str] = Field(default=[], alias="validate")
    versions: dict[str, Any] = {}
    options: dict[str, Any] = {}
    steps_per_second: float | None = None


class _Named(BaseModel):
    name: str


class _MadeFrom(BaseModel):
    fingerprint: str
    train: list[str]
    validate_: list[str] = Field(alias="validate")


class _Model(BaseModel):
    """The entries of `model.yaml` that are read, also in earlier formats. Models of instances have no classes."""

    name: str
    classes: list[_Named] = []
    made_from: _MadeFrom
    made_with: dict[str, Any]


def _read_training(path: Path) -> dict[str, Any]:
    facts = _read_facts(path)
    checked(_Facts, facts, path, "what a training was begun with")
    return facts


def _read_facts(path: Path) -> dict[str, Any]:
    return read_form(dict[str, Any], path, "a mapping") if path.exists() else {}


def _read_model(path: Path) -> dict[str, Any]:
    """`model.yaml` in the form of `training.json`."""
    if not path.exists():
        return {}
    try:
        model = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise TomoscoutError(f"{path}: not a model description ({' '.join(str(error).split())})") from None
    checked(_Model, model, path, "a model description")
    made_from = model["made_from"]
    return {
        "name": model["name"],
        "fingerprint": made_from["fingerprint"],
        "classes": [entry["name"] for entry in model.get("classes", [])],
        "train": made_from["train"],
        "validate": made_from["validate"],
        "versions": model["made_with"],
        "options": {name: value for name, value in model.items() if name not in NOT_OPTIONS},
    }


def _read_curves(path: Path, classes: Sequence[str]) -> Curves:
    """The columns of `metrics.csv`; those of classes are their scores."""
    curves: Curves = {}
    if path.exists():
        try:
            for row in read_table(path):
                step = int(row.pop("step"))
                for column, text in row.items():
                    if text and math.isfinite(value := float(text)):
                        name = _key(f"scores/{column}" if column in classes else column)
                        curves.setdefault(name, {})[step] = value
        except (KeyError, ValueError) as error:
            raise TomoscoutError(f"{path}: not the curves of a training ({error})") from None
    return curves


def _numbers(results: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in _flatten(results, "result", "/"):
        if isinstance(value, int | float) and math.isfinite(value):
            yield _key(name), float(value)


def _params(facts: Mapping[str, Any]) -> dict[str, str]:
    values = {
        **dict(_flatten(facts.get("options", {}), "", ".")),
        "classes": ", ".join(facts.get("classes", [])),
        "split.train": ", ".join(facts.get("train", [])),
        "split.validate": ", ".join(facts.get("validate", [])),
    }
    texts = {_key(name): value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return {
        name: text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…" for name, text in texts.items()
    }


def _ended(folder: Path, finished: bool) -> float | None:
    """The time at which a training ended with a model, or a trial without one."""
    path = folder / ("model.yaml" if finished else "result.json")
    return path.stat().st_mtime if path.exists() else None


def _tags(facts: Mapping[str, Any], folder: Path, trial: Mapping[str, Any]) -> dict[str, str]:
    tags = {
        FINGERPRINT: facts["fingerprint"],
        MODEL: facts["name"],
        "tomoscout.folder": str(folder.resolve()),
        "mlflow.source.name": "tomoscout",
        **{_key(f"version.{name}"): str(number) for name, number in facts.get("versions", {}).items()},
    }
    if trial:
        tags |= {STUDY: folder.resolve().parent.name, "tomoscout.state": trial["state"]}
    if "device" in facts:
        tags["tomoscout.device"] = str(facts["device"])
    # In a container a user may have no name.
    with contextlib.suppress(KeyError, OSError):
        tags["mlflow.user"] = getpass.getuser()
    return tags


def _flatten(value: Any, name: str, separator: str) -> Iterator[tuple[str, Any]]:
    """The leaves of nested options, each with its path as its name. A list of plain values is a leaf."""
    if isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        value = dict(enumerate(value))
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flatten(part, f"{name}{separator}{key}" if name else str(key), separator)
    else:
        yield name, value


def _key(name: str) -> str:
    """A name that MLflow accepts: other characters, and parts that would mean a folder, are replaced."""
    return "/".join(re.sub(r"[^\w.\- :]|^\.*$", "-", part) for part in name.split("/"))[:250]
