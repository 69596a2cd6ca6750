#!/usr/bin/env bash
# Wait for the notice with which a cloud takes a spot machine back, then have Ray drain this machine: runs leave it before it ends.
# AWS gives two minutes, Google Cloud half a one. cluster.yaml and configs/cluster/gcp.yaml start this on their workers.
set -u
metadata=${METADATA:-http://169.254.169.254} # of either cloud, the same on every machine
exec 9> "${TMPDIR:-/tmp}/distrl-spot-notice" # one is enough
flock -n 9 || exit 0

seconds_left() { # fails where there is no notice
    local token
    token=$(curl -sf -m 2 -X PUT -H "X-aws-ec2-metadata-token-ttl-seconds: 60" "$metadata/latest/api/token") &&
        curl -sf -m 2 -o /dev/null -H "X-aws-ec2-metadata-token: $token" "$metadata/latest/meta-data/spot/instance-action" &&
        echo 120 && return
    [ "$(curl -sf -m 2 -H "Metadata-Flavor: Google" "$metadata/computeMetadata/v1/instance/preempted")" = TRUE ] && echo 30
}

until left=$(seconds_left); do sleep "${EVERY:-2}"; done
for _ in 1 2 3; do
    RAY_AUTH_MODE=token ray drain-node --reason=DRAIN_NODE_REASON_PREEMPTION --reason-message="the cloud takes it back" \
        --deadline-remaining-seconds="$left" && exit 0
    sleep 1
done
exit 1
