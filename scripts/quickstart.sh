#!/usr/bin/env bash
# From nothing to a trained agent: install into .venv, then train PPO on CartPole until it is solved.
# The first time it takes some 2.3 GB of disk and a few minutes, most of it for torch and Ray; then a quarter of a minute.
# Arguments go to `distrl train`, e.g. scripts/quickstart.sh seed=3
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/install.sh
exec .venv/bin/distrl train configs/ppo_cartpole.yaml "$@"
