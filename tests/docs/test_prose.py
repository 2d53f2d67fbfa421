"""What the documentation says beside its commands: links, options, names of commands, messages, octopi's options."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import click
import pytest

from support.markdown import DOCUMENTS, ROOT, anchors, in_backquotes, links
from support.snakemake_session import CELL_TARGETS, OTHER_TARGETS, TARGETS
from tomoscout.cli import main

TROUBLE = ROOT / "docs/trouble.md"
OCTOPI = ROOT / "docs/octopi.md"

# What the change log says was there once need not be there now.
PRESENT = [document for document in DOCUMENTS if document.name != "CHANGELOG.md"]


def _name(document: Path) -> str:
    return str(document.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_links_lead_somewhere(document: Path) -> None:
    for link in links(document):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_guide_is_in_the_index() -> None:
    index = ROOT / "docs/README.md"
    guides = {path.name for path in index.parent.glob("*.md")} - {index.name}
    assert guides <= {link.partition("#")[0] for link in links(index)}


# Options


@cache
def option_names() -> set[str]:
    """Every option and section by its whole name, as the reference has them; those of all families of networks."""
    reference = (ROOT / "config/README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_0-9.]+)` \|", reference, re.M)
    return {*rows, *re.findall(r"^## `(.+)`", reference, re.M), *(f"train.network.{name}" for name in rows)}


@pytest.mark.parametrize("document", PRESENT, ids=_name)
def test_options_are_those_that_there_are(document: Path) -> None:
    sections = "|".join(sorted({name.partition(".")[0] for name in option_names() if "." in name}))
    for text in in_backquotes(document):
        found = re.match(rf"(?:{sections})\.[a-z_.0-9]+(?=$|[:=])", text)
        if found and not re.search(r"\.(py|smk|yaml|json|tsv|html|md|csv)$", found[0]):
            assert found[0] in option_names(), text


# Commands in the prose


def check_tomoscout(words: list[str]) -> None:
    """Follow a command line through the groups of commands; its options must be those of the last."""
    command: click.Command = main
    for word in words:
        if isinstance(command, click.Group) and word in command.commands:
            command = command.commands[word]
        elif word.startswith("-"):
            known = {option for parameter in command.params for option in parameter.opts} | {"--help", "--version"}
            assert word in known, words
    assert command is not main or not words or words[0].startswith("-"), words


@pytest.mark.parametrize("document", PRESENT, ids=_name)
def test_commands_in_the_prose_are_those_that_there_are(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for text in in_backquotes(document):
        program, *words = text.split()
        if program == "tomoscout":
            check_tomoscout(words)
        elif program == "make" and words:
            assert re.search(rf"^{re.escape(words[0])}:", makefile, re.M), text
        elif program == "snakemake" and words and re.match(r"[a-z]", words[0]):
            assert words[0] in [*TARGETS, *OTHER_TARGETS, *CELL_TARGETS, "phantom", "phantom_cells"], text
        elif program == "python" and words and words[0].endswith(".py"):
            assert (ROOT / words[0]).exists(), text


# Messages


@cache
def texts_of_the_source() -> list[str]:
    """Every text in the package and the rules, with a zero byte where a value is filled in."""
    found = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else "\0" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    for path in (ROOT / "workflow/rules").glob("*.smk"):
        found += re.findall(r'"([^"\n]+)"', path.read_text(encoding="utf-8"))
    return found


MESSAGES = re.findall(r"^\| `(.+?)` \| .+ \| .+ \|$", TROUBLE.read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_are_those_of_the_source(message: str) -> None:
    fixed = [part for part in message.split("…") if part.strip()]
    assert max(map(len, fixed)) >= 10, "says too little to be found"
    pattern = re.compile(".*".join(map(re.escape, fixed)), re.S)
    assert any(pattern.search(text) for text in texts_of_the_source())


def test_every_row_of_the_messages_is_read() -> None:
    rows = [line for line in TROUBLE.read_text().splitlines() if line.startswith("|")]
    heads = [line for line in rows if line.startswith(("| message |", "|---"))]
    assert len(MESSAGES) == len(rows) - len(heads) > 40


# octopi 1.7.0, as its own code declares its commands

OCTOPI_OPTIONS = {
    "create-targets": "config target picks-user-id picks-session-id tomo-uri radius-scale run-ids target-uri",
    "train": """config tomo-uri target-uri trainRunIDs validateRunIDs data-split output model-config model-weights
        num-epochs val-interval ncache-tomos batch-size best-metric lr tversky-alpha background-ratio channels strides
        res-units dim-in""",
    "model-explore": """config tomo-uri target-uri trainRunIDs validateRunIDs data-split output study-name model-type
        num-trials num-epochs val-interval best-metric ncache-tomos background-ratio random-seed submitit njobs
        cpu-constraint gpu-constraint timeout db-backend""",
    "segment": "config tomo-uri model-weights model-config run-ids seg-uri sliding-window-batch-size overlap ntta",
    "localize": """config runIDs voxel-size method seg-uri label radius-min-scale radius-max-scale filter-size
        pick-objects n-procs pick-user-id pick-session-id""",
    "evaluate": """config ground-truth-user-id ground-truth-session-id predict-user-id predict-session-id run-ids
        object-names distance-threshold-scale fbeta output verbose""",
    "extract": """config name seg-uri user-id session-id run-ids voxel-size picks-uri runIDs threshold n-procs
        save-user-id save-session-id""",
    "import": "path config tomo-alg input-voxel-size output-voxel-size",
    "download": "config datasetID overlay source-type target-type input-voxel-size output-voxel-size",
    "mcp": "target project-path server-name python-path force transport port",
}


@pytest.mark.parametrize("command", OCTOPI_OPTIONS)
def test_every_option_of_octopi_is_told(command: str) -> None:
    section = re.search(rf"^## octopi {command}$(.*?)^## ", OCTOPI.read_text(encoding="utf-8"), re.M | re.S)
    assert section
    told = set(re.findall(r"`--([\w-]+)`", section[1]))
    assert set(OCTOPI_OPTIONS[command].split()) <= told
