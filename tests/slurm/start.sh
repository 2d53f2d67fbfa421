#!/usr/bin/env bash
# A Slurm of this machine alone with two pretended GPUs, to try the workflow on: tests/slurm/start.sh FOLDER
# Needs root and Debian's packages slurm-wlm and munge; ends with 77 where it cannot be. It listens on 127.0.0.1. All of
# it lies in FOLDER, but for links in /etc/slurm: Snakemake's executor takes SLURM_CONF from the jobs.
set -euo pipefail
folder=$(realpath -m "${1:?usage: start.sh FOLDER}")
host=$(hostname -s)

unfit() {
    echo "no Slurm here: $*" >&2
    exit 77
}

[ "$(id -u)" = 0 ] || unfit "only root can start one"
for program in munged slurmctld slurmd; do
    [ -x "/usr/sbin/$program" ] || unfit "$program is not installed (Debian: apt-get install slurm-wlm munge)"
done
getent hosts "$host" > /dev/null || unfit "/etc/hosts lacks the name of this machine, $host"
for file in slurm gres; do
    link=/etc/slurm/$file.conf
    # What could not be stopped properly leaves links to nothing, or to one like this that has ended.
    there=$(dirname "$(realpath -m "$link")")
    if [ ! -e "$link" ] || { grep -qs '^ClusterName=tomoscout$' "$there/slurm.conf" &&
        ! kill -0 "$(cat "$there/run/slurmctld.pid" 2> /dev/null || echo none)" 2> /dev/null; }; then
        rm -f "$link"
    fi
    [ ! -e "$link" ] || unfit "$(realpath "$link") is the configuration of another one"
done

mkdir -p "$folder"/{log,run,spool,state} /etc/slurm
# Only character devices become CUDA_VISIBLE_DEVICES; nothing answers behind these.
for gpu in 0 1; do
    mknod -m 666 "$folder/gpu$gpu" c 240 "$gpu" || unfit "devices cannot be made in $folder"
done

read -r controller_port daemon_port < <(python3 -c '
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(socket.getsockname()[1] for socket in sockets))')

cat > "$folder/slurm.conf" << CONFIG
ClusterName=tomoscout
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$controller_port
SlurmdPort=$daemon_port
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/run/munge.socket
CredType=cred/munge
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
MpiDefault=none
# What became of jobs stays known, also to a slow test.
MinJobAge=3600
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
AccountingStorageType=accounting_storage/none
# Without control groups, memory is watched from outside, every second.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
GresTypes=gpu
# More cores and memory than there are, so that jobs wait for GPUs alone.
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=64 RealMemory=512000 Gres=gpu:pretended:2 State=UNKNOWN
PartitionName=cpu Nodes=ALL Default=YES
PartitionName=gpu Nodes=ALL
CONFIG
cat > "$folder/gres.conf" << CONFIG
AutoDetect=off
NodeName=$host Name=gpu Type=pretended File=$folder/gpu[0-1]
CONFIG
for file in slurm gres; do
    ln -s "$folder/$file.conf" "/etc/slurm/$file.conf"
done

(umask 077 && head -c 128 /dev/urandom > "$folder/munge.key")
/usr/sbin/munged --force --socket="$folder/run/munge.socket" --key-file="$folder/munge.key" \
    --seed-file="$folder/munge.seed" --pid-file="$folder/run/munged.pid" --log-file="$folder/log/munged.log"
/usr/sbin/slurmctld
/usr/sbin/slurmd
for _ in $(seq 300); do
    [ "$(sinfo --noheader --format=%T --partition=gpu)" != idle ] || exit 0
    sleep 0.1
done
tail -n 5 "$folder"/log/*.log >&2
exit 1
