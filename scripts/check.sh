#!/usr/bin/env bash
# All that a change must pass: lint, format, types, tests, in an environment of the tested versions. CI runs this too.
# Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/install.sh dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy distrl
exec scripts/test.sh "$@"
