"""The runs that the configuration excludes from every stage."""

from __future__ import annotations

from collections.abc import Sequence

from tomoscout.data.inventory import RunRecord, find_runs
from tomoscout.options.config import Config


def excluded_runs(config: Config, records: Sequence[RunRecord]) -> dict[str, str]:
    """The runs (`project/run`) of `split.exclude`, which no stage uses, with the reasons.

    Raises:
        TomoscoutError: there is no such run.
    """
    options = config.split.exclude
    found = find_runs(list(records), list(options), "split.exclude")
    return {record.key: why for record, why in zip(found, options.values(), strict=True)}
