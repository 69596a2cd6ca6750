#!/usr/bin/env bash
# A cluster of several hosts on this one machine, as network namespaces: the real `ray up` on configs/cluster/onprem.yaml, the
# real `distrl submit` of four algorithms, kept on an S3 server and in a directory; a host that dies, one that is added, a link that
# is cut, a head that is lost; the weights are compared with a laptop's. The last line is JSON; 0 is success, 77 is that it cannot be
# done here.
# Needs Linux, root, openssh-server, rsync and iproute2, and what scripts/install.sh dev installs. Everything ends with it, or after
# 40 minutes.
# Usage: scripts/rehearse_cluster.sh [--quick] [--beside a2c dqn q] [--seconds 2400]      PYTHON=python3 takes another Python
#   --quick: some 4 minutes: PPO on two hosts, of which one dies
set -euo pipefail
cd "$(dirname "$0")/.."
missing=""
[ "$(uname)" = Linux ] || missing="Linux"
[ "$(id -u)" = 0 ] || missing="$missing root"
PATH="$PATH:/usr/sbin:/sbin"
for tool in sshd:openssh-server rsync:rsync ip:iproute2 ssh-keygen:openssh-client unshare:util-linux setpriv:util-linux; do
    command -v "${tool%%:*}" > /dev/null || missing="$missing ${tool##*:}"
done
"${PYTHON:-.venv/bin/python}" -c "import moto.server, flask" 2> /dev/null || missing="$missing moto[server]"
if [ -z "$missing" ] && ! unshare --net --mount --pid --fork --mount-proc true 2> /dev/null; then
    missing="namespaces, which this container may not make"
fi
if [ -n "$missing" ]; then
    echo "The rehearsal needs what is not here: ${missing# }" >&2
    exit 77 # neither passed nor failed
fi
directory=$(mktemp -d /var/tmp/distrl-rehearsal-XXXXXX)
inside=""
end() { # all that is in the namespaces ends with the process that made them
    [ -z "$inside" ] || kill -KILL "$inside" 2> /dev/null || true
    wait || true
    for _ in {1..100}; do # what was killed may write for a moment longer
        rm -rf --one-file-system "$directory" 2> /dev/null && break
        sleep 0.1
    done
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
# Processes, addresses and mounts are in namespaces of their own. They end with this shell, too, however it is killed.
PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" setpriv --pdeathsig KILL \
    unshare --net --mount --pid --fork --mount-proc --kill-child=KILL \
    "${PYTHON:-.venv/bin/python}" scripts/rehearse_cluster.py "$directory" "$@" &
inside=$!
code=0
wait "$inside" || code=$?
inside=""
exit "$code"
