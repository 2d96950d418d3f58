#!/usr/bin/env bash
# The fault tests in their long form: 24 kills at random moments (FAULTS=N for another number), bad inputs, a full disk,
# and then, with the options of soak.py, the memory of a long training.
# Usage: bash scripts/bench/soak.sh [--data CAPTURE --teacher RUN/config.yml]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
FAULTS=${FAULTS:-24} OMP_NUM_THREADS=1 .venv/bin/python -W ignore -m pytest -v tests/faults
[ $# = 0 ] || .venv/bin/python -W ignore scripts/bench/soak.py "$@"
