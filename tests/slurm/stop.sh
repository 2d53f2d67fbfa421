#!/usr/bin/env bash
# Ends the Slurm that tests/slurm/start.sh FOLDER started, with its jobs, and nothing else.
set -euo pipefail
folder=$(realpath -m "${1:?usage: stop.sh FOLDER}")
[ "$(realpath -m /etc/slurm/slurm.conf)" = "$folder/slurm.conf" ] || exit 0

scancel --user=root 2> /dev/null || true
for _ in $(seq 400); do
    [ -n "$(squeue --noheader 2> /dev/null)" ] || break
    sleep 0.1
done
for program in slurmd slurmctld munged; do
    [ -s "$folder/run/$program.pid" ] || continue
    pid=$(cat "$folder/run/$program.pid")
    kill "$pid" 2> /dev/null && tail --pid="$pid" --sleep-interval=0.1 -f /dev/null
done
rm /etc/slurm/{slurm,gres}.conf
