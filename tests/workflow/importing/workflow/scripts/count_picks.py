"""How many picks of the test run each session holds, and how many the scores count."""

import csv
import json
from pathlib import Path

import copick

run = copick.from_file(snakemake.input.project).get_run("phantom-003")  # noqa: F821
scores = json.loads(Path(snakemake.input.scores).read_text())  # noqa: F821
with Path(snakemake.output[0]).open("w", newline="") as handle:  # noqa: F821
    rows = csv.writer(handle)
    for session in ("tiny", "applied"):
        for picks in run.get_picks(user_id="tomoscout", session_id=session):
            rows.writerow([session, picks.pickable_object_name, len(picks.points)])
    rows.writerow(["scored", "", len(scores["runs_scored"])])
