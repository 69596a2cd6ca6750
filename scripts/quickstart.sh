#!/usr/bin/env bash
# From nothing to a trained agent: install into .venv, then train PPO on CartPole through Ray until it is solved.
# Arguments go to `distrl train`, e.g. scripts/quickstart.sh seed=3
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/install.sh
exec .venv/bin/distrl train configs/ppo_cartpole.yaml "$@"
