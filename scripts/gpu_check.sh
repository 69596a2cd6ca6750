#!/usr/bin/env bash
# What a GPU does for distrl, in at most nine minutes: the same bits, updates/s, Flappy Bird from pixels. Needs no network.
# Usage: scripts/gpu_check.sh [--device cuda] [--minutes 9] [--out gpu_check.json]    PYTHON=python3 takes another Python
set -euo pipefail
cd "$(dirname "$0")/.."
exec env PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" "${PYTHON:-.venv/bin/python}" scripts/gpu_check.py "$@"
