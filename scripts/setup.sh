#!/usr/bin/env bash
# Makes .venv and installs mobiler2l-ns in it with the tested versions. Safe to run again: does nothing when up to date.
# PYTHON=/path/to/python3.x chooses the interpreter (3.10, 3.11 or 3.12).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

supported='import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))'
stamp=.venv/mobiler2l-installed
wanted=$(cat pyproject.toml constraints.txt | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && .venv/bin/python -c "$supported" 2>/dev/null; then
  exit 0
fi

if ! .venv/bin/python -c "$supported" 2>/dev/null; then
  for python in ${PYTHON:-python3 python3.11 python3.12 python3.10}; do
    if "$python" -c "$supported" 2>/dev/null; then break; fi
    python=
  done
  if [ -z "$python" ]; then
    echo "mobiler2l: no Python 3.10, 3.11 or 3.12 with venv was found: install one, or name it with PYTHON=..." >&2
    exit 1
  fi
  echo "Making .venv with $("$python" --version) ..."
  "$python" -m venv --clear .venv
fi

echo "Installing nerfstudio, PyTorch and mobiler2l-ns into .venv (3 GB to fetch the first time) ..."
.venv/bin/python -m pip install --quiet --disable-pip-version-check uv
# uv rather than pip: pip may pair a CPU-only torch with a torchvision that was built for CUDA.
if ! .venv/bin/uv pip install --quiet --python .venv/bin/python --constraint constraints.txt \
    --editable '.[export,demo,dev]'; then
  echo "mobiler2l: the installation failed, see above. Where a package has no wheel for this machine (xatlas on Linux" \
    "on ARM), compilers are needed: apt install build-essential cmake python3-dev" >&2
  exit 1
fi
# Poses of photos: pycolmap has wheels for Linux on x86-64 (glibc 2.28), macOS on ARM and Windows.
if ! .venv/bin/uv pip install --quiet --python .venv/bin/python --constraint constraints.txt --editable '.[capture]'; then
  echo "pycolmap cannot be installed here, so ns-process-mobiler2l finds no poses: use ns-process-data with COLMAP."
fi
# uv leaves byte code to the first import, which takes half a minute. Where PYTHONDONTWRITEBYTECODE is set, as in many
# containers, each command would take as long.
if ! env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -W ignore -c \
    'import nerfstudio.scripts.train, nerfstudio.scripts.eval, mobiler2l_ns.export.command, onnxruntime, onnx'; then
  echo "mobiler2l: the installed packages cannot be imported, see above: delete .venv and run this again" >&2
  exit 1
fi
echo "$wanted" > "$stamp"
.venv/bin/python scripts/missing_packages.py
