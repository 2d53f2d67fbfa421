"""Writes the environments of the rules from the lock: `make docs`.

A group of rules needs some of the packages in `requirements.lock`: those that `groups` names, and all that these need
in turn. Each group has a lock, which its image installs, and a conda file with the same packages for `--sdm conda`.
A back end of cells has what `network` has, and a lock of its own for an environment within.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement

ENVIRONMENTS = Path(__file__).parent
PYTHON = "3.11"

LIGHT = """
    click copick dynamotable emfile imodmodel jinja2 mrcfile numcodecs numpy pandas pillow psutil pydantic pyyaml
    safetensors scikit-image scipy setuptools starfile tifffile zarr
"""
"""What the stages import that use no network. setuptools installs tomoscout itself."""

HEADER = "# Written by `make docs` from requirements.lock: change that, or envs/write.py.\n"


def groups() -> dict[str, list[str]]:
    """The groups of rules and the packages that each asks for."""
    project = tomllib.loads((ENVIRONMENTS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {"light": LIGHT.split(), "network": [*project["dependencies"], "setuptools"]}


def normalised(name: str) -> str:
    """The name of a package as PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(packages: Iterable[str]) -> set[str]:
    """Names of the packages, and of all that they need, as the installed ones say."""
    found: dict[str, frozenset[str]] = {}
    waiting = [Requirement(package) for package in packages]
    while waiting:
        requirement = waiting.pop()
        name, extras = normalised(requirement.name), frozenset(requirement.extras)
        if extras <= found.get(name, frozenset()) and name in found:
            continue
        found[name] = found.get(name, frozenset()) | extras
        try:
            needs = requires(name) or []
        except PackageNotFoundError:
            raise SystemExit(f"{name} is not installed; run `make .venv/ready`") from None
        waiting += [need for need in map(Requirement, needs) if _holds(need, found[name])]
    return set(found)


def _holds(requirement: Requirement, extras: Iterable[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def locked(packages: Iterable[str]) -> list[str]:
    """The lines of the lock for the packages and all that they need.

    Raises:
        SystemExit: the lock lacks one.
    """
    lines = (ENVIRONMENTS / "requirements.lock").read_text(encoding="utf-8").split()
    lock = {normalised(line.split("==")[0]): line for line in lines}
    names = needed(packages)
    if missing := sorted(names - lock.keys()):
        raise SystemExit(f"requirements.lock lacks {', '.join(missing)}")
    return [lock[name] for name in sorted(names)]


def environments() -> dict[str, str]:
    """File name → text, for each lock and conda file."""
    files = {}
    for group, packages in groups().items():
        lines = locked(packages)
        files[f"{group}.lock"] = HEADER + "".join(f"{line}\n" for line in lines)
        pins = "".join(f"      - {line}\n" for line in lines)
        files[f"{group}.yaml"] = (
            f"{HEADER}channels:\n  - conda-forge\n  - nodefaults\n"
            f"dependencies:\n  - python ={PYTHON}\n  - pip\n  - pip:\n{pins}"
        )
    return files


if __name__ == "__main__":
    for name, text in environments().items():
        (ENVIRONMENTS / name).write_text(text, encoding="utf-8")
