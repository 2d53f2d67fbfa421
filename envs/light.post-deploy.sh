#!/usr/bin/env bash
# Snakemake runs this after it has made the environment: tomoscout itself, from this clone.
set -euo pipefail
python -m pip install --no-deps --no-build-isolation --editable "$(dirname "${BASH_SOURCE[0]}")/.."
