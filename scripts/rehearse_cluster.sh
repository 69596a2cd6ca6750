#!/usr/bin/env bash
# A cluster of several hosts on this one machine, as network namespaces: the real `ray up` on configs/cluster/onprem.yaml, the
# real `distrl submit`, a host that dies; the weights are compared with a laptop's. The last line is JSON; 0 is success.
# Needs Linux, root, and openssh-server, rsync and iproute2. Everything ends with it, or after 10 minutes.
# Usage: scripts/rehearse_cluster.sh [--seconds 600]      PYTHON=python3 takes another Python
set -euo pipefail
cd "$(dirname "$0")/.."
missing=""
[ "$(uname)" = Linux ] || missing="Linux"
[ "$(id -u)" = 0 ] || missing="$missing root"
for tool in sshd:openssh-server rsync:rsync ip:iproute2 ssh-keygen:openssh-client unshare:util-linux timeout:coreutils; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "${tool%%:*}" > /dev/null || missing="$missing ${tool##*:}"
done
if [ -z "$missing" ] && ! unshare --net --mount --pid --fork --mount-proc true 2> /dev/null; then
    missing="namespaces, which this container may not make"
fi
if [ -n "$missing" ]; then
    echo "The rehearsal needs what is not here: ${missing# }" >&2
    exit 77 # neither passed nor failed
fi
seconds=600
args=("$@")
for i in "${!args[@]}"; do
    if [ "${args[$i]}" = --seconds ]; then seconds=${args[$i + 1]}; fi
done
directory=$(mktemp -d /var/tmp/distrl-rehearsal-XXXXXX)
trap 'rm -rf --one-file-system "$directory"' EXIT
# Processes, addresses and mounts are in namespaces of their own, which end with the process that made them.
PATH="$PATH:/usr/sbin:/sbin" PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" timeout --kill-after=5 "$seconds" \
    unshare --net --mount --pid --fork --mount-proc --kill-child=KILL \
    "${PYTHON:-.venv/bin/python}" scripts/rehearse_cluster.py "$directory" "$@"
