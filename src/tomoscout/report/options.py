"""Options of the report."""

from __future__ import annotations

from pydantic import Field

from tomoscout.options.sections import Section


class Report(Section):
    """The report."""

    title: str = "tomoscout"
    """Heading of the page."""
    slices_per_run: int = Field(default=3, ge=1, le=20)
    """Tomogram slices shown per scored run."""
    runs: int = Field(default=6, ge=1, le=10_000)
    """Largest number of runs shown."""
    worst: int = Field(default=6, ge=0, le=100)
    """Of each object, so many false picks and missed references at most are shown as cut-outs: those with the highest
    scores, and those farthest from any pick."""
