#!/usr/bin/env bash
# Installs if needed, trains a teacher, distils a student, exports it and compares all three with held-out photos.
# Usage: bash scripts/quickstart.sh [PHOTOS]     PHOTOS: a folder of photos with or without poses, or a video; left out: a
# ray-traced demo scene is made.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
started=$(date +%s)
bash "$here/setup.sh"
export MOBILER2L_INSTALL_SECONDS=$(($(date +%s) - started))
exec "$here/../.venv/bin/python" "$here/quickstart.py" "$@"
