#!/usr/bin/env bash
# Installs if needed and runs the linters, the type checker and all tests.
# Arguments go to pytest: bash scripts/test.sh -k export
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/lint-imports --no-cache
unset PYTHONDONTWRITEBYTECODE  # or each process that a test starts would compile nerfstudio again
# The type checker runs while the tests start, which is one process for half a minute.
.venv/bin/pyright &
types=$!
# Two processes with one thread each: many tests wait for commands and browsers that they started.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
failed=0
.venv/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@" || failed=$?
wait "$types" || { echo "The type checker found errors, see above." >&2; failed=1; }
exit "$failed"
