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
exec .venv/bin/python -m pytest "$@"
