#!/usr/bin/env bash
# Run the tests, in an environment of the tested versions. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/install.sh dev
exec .venv/bin/python -m pytest "$@"
