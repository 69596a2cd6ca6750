#!/usr/bin/env bash
# Run the tests, in an environment of the tested versions. Arguments go to pytest; without any, two processes share the
# whole suite file by file, since half of it waits for Ray to start.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/install.sh dev
if [ $# = 0 ]; then set -- -n 2 --dist loadfile --no-loadscope-reorder; fi
exec .venv/bin/python -m pytest "$@"
