"""An input, what the commands made of it, and whether that may be."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from endurance.processes import Ended

SECONDS = 20.0
"""After so long a command on a project of three small runs hangs, on a busy machine too."""
LONGEST = 600
"""Characters of a message that somebody still reads."""


@dataclass(frozen=True)
class Case:
    """A damaged input. `refused`: some command must end in an error. `about`: words, one of which a message about it
    has. `harmless`: why the results may differ although nothing is said."""

    text: str
    refused: bool = False
    about: list[str] = field(default_factory=list)
    harmless: str = ""


class Failure(NamedTuple):
    """What went wrong: the kind, to count by, and the particulars."""

    kind: str
    text: str


def judge_messages(command: str, ended: Ended, names: list[str]) -> list[Failure]:
    """What is wrong with how a command ended. `names`: what a message can name."""
    if ended.code is None:
        return [Failure("hang", f"{command}: no end after {ended.seconds:.0f} s")]
    if ended.code < 0:
        return [Failure("crash", f"{command}: signal {-ended.code}")]
    failures = []
    if "Traceback (most recent call last)" in ended.output:
        last = ended.output.strip().splitlines()[-1]
        failures.append(Failure("traceback", f"{command}: {_frame(ended.output)} {last[:200]}"))
    elif ended.code:
        failures += _judge_error(command, ended, names)
    long = [line for line in messages(ended) if len(line) > LONGEST]
    return failures + [Failure("long message", f"{command}: {len(line)} characters: {line[:120]}") for line in long]


def _judge_error(command: str, ended: Ended, names: list[str]) -> list[Failure]:
    lines = [line for line in ended.output.splitlines() if line.strip()]
    if command.startswith("verify") and lines and "digests compared" in lines[-1]:
        return []
    if not lines or not lines[-1].startswith(("error: ", "Error: ")):
        return [Failure("no error line", f"{command}: exit {ended.code}, {lines[-1][:200] if lines else 'no output'}")]
    if sum(line.startswith("error: ") for line in lines) > 1:
        return [Failure("several error lines", f"{command}: {lines[-2][:150]}")]
    if not any(re.search(rf"(?<!\w){re.escape(name)}", lines[-1]) for name in names):
        return [Failure("error names nothing", f"{command}: {lines[-1][:200]}")]
    return []


def messages(ended: Ended) -> list[str]:
    """The errors and warnings that were printed."""
    return [line for line in ended.output.splitlines() if re.match(r"(error|warning|note): ", line, re.I)]


def _frame(output: str) -> str:
    frames = re.findall(r'File "[^"]*/tomoscout/([^"]+)", line (\d+)', output)
    return ":".join(frames[-1]) if frames else "?"
