"""A stage that the package does not know: a text file per run with the number of picks that its target is made of.

Run as a program it is the command line with one more command. The version of its numbers is $TOY_VERSION.
"""

from __future__ import annotations

import os
from pathlib import Path

from tomoscout.cli import main
from tomoscout.cli.common import batch_option, configured, load, output_option
from tomoscout.machine.files import digest, digest_file
from tomoscout.plan.paths import read_manifest
from tomoscout.plan.plan import Plan
from tomoscout.plan.stages import STAGES, Stage, Stated
from tomoscout.stages.batches import Batch

STAGES["toy"] = Stage(
    version=int(os.environ.get("TOY_VERSION", "1")),
    depends_on=lambda plan, batch: digest(plan.version("toy")),
    runs=lambda plan: plan.targeted,
    written=lambda plan, manifest: iter([Stated("file", manifest["file"], manifest["digest"])]),
)


def run_toy(plan: Plan, batch: int, output: Path) -> None:
    """Write the files of a batch of runs."""
    work = Batch(plan.config, plan.targeted, batch, output)
    for record in work.records:
        with work.attempt(record):
            made_from = read_manifest(plan.results.targets(plan.config.targets.name), record, targets=list)
            inputs = digest([plan.version("toy"), made_from["inputs"]])
            path = work.manifest_path(record).with_suffix(".txt")
            if not work.is_done(record, inputs, [path]):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{plan.version('toy')}: {made_from['targets'][0]['classes'][0]['picks']['used']}\n")
                work.finish(record, inputs, [], {"file": path.name, "digest": digest_file(path)})
    work.write()


@main.command()
@configured
@batch_option
@output_option
def toy(config: Path, inventory: Path, batch: int, output: Path) -> None:
    """Count the picks of the targets."""
    run_toy(load(config, inventory), batch, output)


if __name__ == "__main__":
    main()
