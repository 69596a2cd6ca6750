#!/usr/bin/env bash
# Make .venv with the tested, pinned versions and distrl itself. Quick when there is nothing to do.
# Usage: scripts/install.sh [extra ...]     e.g. scripts/install.sh dev
set -euo pipefail
cd "$(dirname "$0")/.."

python=""
for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "distrl needs Python 3.11 to 3.13; found $(python3 --version 2>&1 || echo none). Set PYTHON=/path/to/python3." >&2
    exit 2
fi

extras=$(IFS=,; echo "$*")
stamp=.venv/.distrl-installed-${extras:-plain}
wanted=$(cat pyproject.toml scripts/constraints.txt | cksum)
if [ -x .venv/bin/python ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi
echo "Installing distrl into .venv: some 2.3 GB on disk, a few minutes the first time ..." >&2
[ -x .venv/bin/python ] || "$python" -m venv .venv
# torch first and by itself: the pinned build is taken before anything else can ask for another one.
.venv/bin/python -m pip install --quiet --disable-pip-version-check "$(grep '^torch==' scripts/constraints.txt)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c scripts/constraints.txt -e ".${extras:+[$extras]}"
if [[ ",$extras," == *,dev,* ]]; then # MiniGrid and MinAtar, without what they ask for and the tests do not need
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -c scripts/constraints.txt minigrid minatar
fi
.venv/bin/python -m compileall -q distrl # an image may forbid Python to keep what it compiles; then each process would do it, for a second
mkdir -p configs/.schema # which the first lines of configs/*.yaml name, for editors that complete keys
for algorithm in ppo a2c dqn q; do
    .venv/bin/distrl config "$algorithm" --schema > "configs/.schema/$algorithm.json"
done
echo "$wanted" > "$stamp"
