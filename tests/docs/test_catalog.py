"""What others read of the repository: the Snakemake workflow catalog, and whoever cites it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.markdown import ROOT


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"])


# Catalog: what it looks for in a repository, as its own pages and its generator have it


def test_the_repository_is_found() -> None:
    readme = (ROOT / "README.md").read_text().lower()
    assert "snakemake" in readme
    assert "workflow" in readme
    assert (ROOT / "workflow/Snakefile").is_file()
    assert all(path.suffix == ".smk" for path in (ROOT / "workflow/rules").iterdir())


def test_it_has_a_standardised_usage() -> None:
    assert (ROOT / "config/README.md").stat().st_size > 1000
    assert (ROOT / "config/config.yaml").is_file()
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert usage.keys() == {"mandatory-flags", "software-stack-deployment", "report"}
    flags = usage["mandatory-flags"]
    assert isinstance(flags["desc"], str)
    assert all(flag.startswith("--") for flag in flags["flags"])
    ways = usage["software-stack-deployment"]
    assert ways == {"conda": True, "apptainer": True, "apptainer+conda": False}
    assert usage["report"] is True


def test_the_rules_can_be_deployed_and_reported_as_it_says() -> None:
    rules = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    assert "container:" in rules
    assert "conda:" in rules
    assert "report(" in rules
    assert re.search(r"^report: ", (ROOT / "workflow/Snakefile").read_text(), re.M)


@pytest.mark.workflow
def test_snakemake_finds_nothing_to_lint(tmp_path: Path) -> None:
    """As the catalog asks it: in a clone, without any argument; so with the example configuration."""
    for name in "Snakefile", "workflow", "config", "profiles":
        (tmp_path / name).symlink_to(ROOT / name)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "snakemake", "--lint"]
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


# Citing


def test_it_is_cited_as_the_version_that_it_is(project: dict[str, Any]) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert citation["type"] == "software"
    assert citation["title"].startswith(project["name"])
    assert citation["message"]
    # Entities, not persons: each has a name and nothing else.
    assert all(author.keys() == {"name"} for author in citation["authors"])


def test_the_change_log_has_the_version(project: dict[str, Any]) -> None:
    log = (ROOT / "CHANGELOG.md").read_text()
    titles = re.findall(r"^## \[(.+?)\]", log, re.M)
    assert titles[0] == "Unreleased"
    assert project["version"] in [*titles, *re.findall(r"will be (\S+),", log)]


@pytest.mark.parametrize(
    "form", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.stem
)
def test_issue_forms_are_complete(form: Path) -> None:
    values = yaml.safe_load(form.read_text())
    assert values.keys() >= {"name", "description", "body"}
    for field in values["body"]:
        assert field["type"] in ("markdown", "textarea", "input", "dropdown", "checkboxes")
        assert field["type"] == "markdown" or field["attributes"]["label"]
    named = [field["id"] for field in values["body"] if field["type"] != "markdown"]
    assert len(set(named)) == len(named)


def test_a_report_of_a_bug_has_what_is_needed() -> None:
    values = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text())
    needed = {field["id"] for field in values["body"] if field.get("validations", {}).get("required")}
    assert {"log", "config", "version"} <= needed
    assert "tomoscout verify" in str(values)
