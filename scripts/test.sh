#!/usr/bin/env bash
# Installs if needed and runs the linters, the type checker and all tests.
# Arguments go to pytest: bash scripts/test.sh -k export
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/lint-imports --no-cache
.venv/bin/pyright
unset PYTHONDONTWRITEBYTECODE  # or each process that a test starts would compile nerfstudio again
# Two processes with one thread each: many tests wait for commands and browsers that they started.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec .venv/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
