#!/usr/bin/env bash
# Snakemake runs this after it has made the environment: tomoscout itself, from this clone, and the package of the back
# end in an environment within.
set -euo pipefail
envs="$(dirname "${BASH_SOURCE[0]}")"
python -m pip install --no-deps --no-build-isolation --editable "$envs/.."
python -m venv "$CONDA_PREFIX/cellpose"
"$CONDA_PREFIX/cellpose/bin/python" -m pip install --requirement "$envs/cellpose.lock"
