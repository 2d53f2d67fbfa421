"""What results were made with: versions and digests, and what to cite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from tomoscout.machine.files import digest
from tomoscout.report.citations import Citation, citations


@dataclass(frozen=True)
class Origin:
    """`versions`: of packages, with the model that each was used for where there are several. `digests`: of models,
    targets and configuration. `citations`: what to cite."""

    versions: list[tuple[str, str]]
    digests: list[tuple[str, str]]
    citations: list[Citation]


def origin_of(
    models: Iterable[Mapping[str, Any]], targets: Iterable[Mapping[str, Any]], configuration: Mapping[str, Any]
) -> Origin:
    """What results were made with.

    Args:
        models: the contents of model.yaml of the models that were applied.
        targets: the manifests of the targets; may be empty.
        configuration: all options.
    """
    here = version("tomoscout")
    versions = [("tomoscout, for this page", here)]
    digests, families = [], []
    for model in models:
        name = f"model {model['name']}" if "name" in model else "model"
        versions += [(f"{package}, for {name}", str(found)) for package, found in model.get("made_with", {}).items()]
        digests.append((f"{name}: model.yaml", digest(model)))
        families.append(str(model.get("network", {}).get("family")))
        if "weights" in model:
            digests.append((f"{name}: weights", str(model["weights"])))
    made: dict[str, dict[str, str]] = {}
    for manifest in targets:
        for target in manifest["targets"]:
            run = f"{manifest['project']}/{manifest['run']}"
            made.setdefault(target["segmentation"], {})[run] = target["digest"]
    digests += [(f"targets {name}, {len(runs):,} runs", digest(runs)) for name, runs in made.items()]
    digests.append(("configuration", digest(configuration)))
    return Origin(versions, digests, citations(here, families))
