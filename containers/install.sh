#!/bin/sh
# Runs within an image that is being built: installs locks of envs/ and tomoscout into /opt/venv.
# usage: install.sh LOCK [LOCK ...]
# cells has the packages of network, and those of its lock.
# A back end (stardist, cellpose) has the packages of network, and those of its lock in an environment of their own.
set -eu
source=/opt/tomoscout

# The pip settings of the machine that builds, where build.py found any.
if [ -f /mnt/pip.conf ]; then
    export PIP_CONFIG_FILE=/mnt/pip.conf
fi
if ! python3 -c 'import ensurepip' 2> /dev/null; then
    apt-get update
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3 python3-venv ca-certificates
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*
fi
python3 -m venv /opt/venv
pip="/opt/venv/bin/python -m pip --quiet --quiet --no-cache-dir --disable-pip-version-check"
for lock in "$@"; do
    case $lock in
    stardist | cellpose)
        $pip install --requirement "$source/envs/network.lock"
        python3 -m venv "/opt/venv/$lock"
        "/opt/venv/$lock/bin/python" -m pip --quiet --quiet --no-cache-dir --disable-pip-version-check \
            install --requirement "$source/envs/$lock.lock"
        ;;
    cells)
        $pip install --requirement "$source/envs/network.lock"
        $pip install --no-deps --requirement "$source/envs/cells.lock"
        ;;
    *) $pip install --requirement "$source/envs/$lock.lock" ;;
    esac
done
$pip install --no-deps --no-build-isolation "$source"
# It is installed now; what stays is the workflow, with the links by which its profiles are known.
rm -rf "$source/src" "$source/build"
ln -sfn workflow/profiles "$source/profiles"
ln -sfn workflow/profiles/slurm "$source/slurm"
/opt/venv/bin/python "$source/containers/check.py" "$@"
