"""The environments of the rules: written from the lock, and the rules name them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "envs/requirements.lock").read_text().split()
GROUPS = ("light", "network")
BACKENDS = ("stardist", "cellpose")


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write", ROOT / "envs/write.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pins(group: str) -> list[str]:
    return [line for line in (ROOT / f"envs/{group}.lock").read_text().splitlines() if not line.startswith("#")]


def test_the_files_are_as_written_from_the_lock(writer: ModuleType) -> None:
    """`make docs` writes them."""
    for name, text in writer.environments().items():
        assert (ROOT / "envs" / name).read_text() == text, name


@pytest.mark.parametrize("group", GROUPS)
def test_a_conda_file_has_exactly_the_pins_of_its_lock(group: str) -> None:
    specs = yaml.safe_load((ROOT / f"envs/{group}.yaml").read_text())
    assert set(specs) == {"channels", "dependencies"}
    *conda, pip = specs["dependencies"]
    assert conda == ["python =3.11", "pip"]
    assert pip == {"pip": pins(group)}
    assert set(pins(group)) <= set(LOCK)
    assert all(re.fullmatch(r"==[^,*]+", str(Requirement(pin).specifier)) for pin in pins(group))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_back_end_has_an_environment_within_that_of_the_network_group(backend: str) -> None:
    envs = ROOT / "envs"
    assert (envs / f"{backend}.yaml").read_text() == (envs / "network.yaml").read_text()
    script = (envs / f"{backend}.post-deploy.sh").read_text()
    assert f'-m venv "$CONDA_PREFIX/{backend}"' in script and f"{backend}.lock" in script
    assert any(pin.startswith(f"{backend}==") for pin in pins(backend))


def test_the_star_head_has_an_environment_of_the_network_group_and_its_lock() -> None:
    envs = ROOT / "envs"
    assert (envs / "cells.yaml").read_text() == (envs / "network.yaml").read_text()
    assert "cells.lock" in (envs / "cells.post-deploy.sh").read_text()
    assert any(pin.startswith("stardist==") for pin in pins("cells"))


def test_the_light_group_has_no_network_library() -> None:
    names = {pin.split("==")[0] for pin in pins("light")}
    assert not names & {"torch", "monai", "mlflow", "optuna", "snakemake", "triton"}
    assert {"copick", "zarr", "scipy"} <= names
    assert set(pins("light")) < set(pins("network"))


@pytest.mark.parametrize("name", ["requirements", "cloud", "cells", "bioimageio", *BACKENDS, *GROUPS])
def test_locks_hold_pins_alone(name: str) -> None:
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", pin) for pin in pins(name)), name


def test_every_rule_with_a_command_names_one_group() -> None:
    """A rule without an image would run on the machine's own packages."""
    for file in (ROOT / "workflow/rules").glob("*.smk"):
        for rule in re.split(r"^rule ", file.read_text(), flags=re.M)[1:]:
            named = re.findall(r'(?:ENVIRONMENTS|IMAGES)\["?([\w.]+)"?\]', rule)
            expected = 2 if "    shell:\n" in rule else 0
            assert len(named) == expected and len(set(named)) <= 1, rule.split(":")[0]


def test_the_containerfile_makes_the_same_image() -> None:
    """No engine builds it here: it copies the same files, to the same places, and runs the same script."""
    definition = (ROOT / "containers/tomoscout.def").read_text()
    containerfile = (ROOT / "containers/Containerfile").read_text()
    copied = {line.split()[0] for line in re.findall(r"^    (\S+ /opt/tomoscout/\S+)$", definition, re.M)}
    sources = [word for line in re.findall(r"^COPY (.*) /opt/\S+$", containerfile, re.M) for word in line.split()]
    assert set(sources) == copied and all((ROOT / source).exists() for source in copied)
    for text in (definition, containerfile):
        assert "/bin/sh /opt/tomoscout/containers/install.sh" in text
        assert set(re.findall(r"org\.opencontainers\.image\.\w+", text)) == {
            f"org.opencontainers.image.{name}" for name in ("title", "licenses", "version", "revision")
        }
    assert containerfile.rindex("USER tomoscout") > containerfile.rindex("RUN ")
