#!/usr/bin/env bash
# Measures on a GPU, see gpu.py. Usage: bash scripts/bench/gpu.sh [options of gpu.py]
# Without .venv and without a network: put wheels of what is missing, this project's own among them, into a folder and
# name it with WHEELS=DIR. They are installed into a folder of their own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=python3
if [ -n "${WHEELS:-}" ]; then
  site=$(mktemp -d)
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
exec "$python" -W ignore scripts/bench/gpu.py "$@"
