#!/usr/bin/env bash
# Snakemake runs this after it has made the environment: tomoscout itself, from this clone, and what the star head needs.
set -euo pipefail
envs="$(dirname "${BASH_SOURCE[0]}")"
python -m pip install --no-deps --no-build-isolation --editable "$envs/.."
python -m pip install --no-deps --requirement "$envs/cells.lock"
