#!/usr/bin/env bash
# Tries the plugin with old and new versions of torch, numpy, onnx and onnxruntime, see docs/compatibility.md.
# Usage: bash scripts/bench/compat.sh [--work DIR] [--only NAME] [--install-only]
#   --work DIR      folder for environments, logs and compatibility.jsonl; default: a new temporary folder
#   --only NAME     one combination of the table below
#   --install-only  make the environments, train nothing
# Each combination gets an environment, 6 GB on Linux, and one line of compatibility.jsonl. A second run with the same
# DIR keeps complete environments and skips combinations that have a line. Needs a C++ compiler and uv, from .venv or
# PATH. uv finds the interpreters in PATH, or fetches them.
set -efuo pipefail  # f: the versions have asterisks
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

combinations() { # name, Python, versions
  cat << 'TABLE'
oldest-3.10  3.10  torch==2.4.*  torchvision==0.19.* numpy==1.22.* onnxruntime==1.22.* onnx==1.17.*
oldest-3.12  3.12  torch==2.6.*  torchvision==0.21.* numpy==1.26.* onnxruntime==1.22.* onnx==1.17.*
mixed-3.11   3.11  torch==2.15.* torchvision==0.29.* numpy==1.24.* onnxruntime==1.26.* onnx==1.17.*
newest-3.10  3.10  torch==2.14.* torchvision==0.29.* numpy==2.2.*  onnxruntime==1.23.* onnx==1.17.*
newest-3.12  3.12  torch==2.15.* torchvision==0.29.* numpy==2.5.*  onnxruntime==1.26.* onnx==1.17.*
TABLE
}

work='' only='' install_only=''
while [ $# -gt 0 ]; do
  case $1 in
    --work) work=${2:?a folder}; shift 2 ;;
    --only) only=${2:?the name of a combination}; shift 2 ;;
    --install-only) install_only=yes; shift ;;
    *) sed -n '3,6s/^# //p' scripts/bench/compat.sh >&2; exit 2 ;;
  esac
done
if [ -n "$only" ] && ! combinations | grep -q "^$only "; then
  echo "$only is none of these combinations:" >&2
  combinations >&2
  exit 2
fi
work=${work:-$(mktemp -d)}
mkdir -p "$work"
work=$(cd "$work" && pwd)
results=$work/compatibility.jsonl
touch "$results"
uv=.venv/bin/uv
[ -x "$uv" ] || uv=uv

# step FOLDER LOG COMMAND...: runs a command in a folder. If it fails, $failure is its name and the line that says why.
step() {
  local folder=$1 log=$2 status=0 reason
  shift 2
  echo "  $(basename "$1") $(head -n 1 <<< "${2:-}")"
  (cd "$folder" && "$@") < /dev/null > "$log" 2>&1 || status=$?
  [ "$status" -ne 0 ] || return 0
  reason=$(grep -E '^[[:alnum:]_.]*(Error|Exception)\b|^mobiler2l: |Because ' "$log" | tail -n 1 || true)
  if [ "$status" -gt 128 ]; then reason="ended by signal $((status - 128))"; fi
  failure="$(basename "$1"): $(sed 's/^ *//' <<< "${reason:-$(grep . "$log" | tail -n 1)}" | cut -c 1-300)"
  echo "  failed: $failure"
  return 1
}

# The project from the checkout, in an environment. It runs in the root, where uv reads the overrides of pyproject.toml.
install() { # folder, versions
  printf '%s\n' $2 > "$1/constraints.txt"
  step . "$1/install.log" "$uv" pip install --python "$1/environment/bin/python" \
    --constraint "$1/constraints.txt" --editable '.[export,demo]'
}

# As in the checkpoints of nerfstudio's own methods, whose schedulers compute with numpy.
numpy_scalar='
import numpy, torch
from mobiler2l_ns.compat import allow_numpy_scalars
allow_numpy_scalars()
torch.save([numpy.float64(0.5)], "scalar.ckpt")
assert torch.load("scalar.ckpt", weights_only=True) == [0.5]
'

# A teacher and a student of a tiny capture, trained for two steps each. All exported files are compared with torch.
# int8 needs onnxruntime's quantiser.
smoke() { # folder
  local run=$1/run bin=$1/environment/bin config=outputs/capture/mobiler2l-small/now/config.yml
  local scene=$PWD/scripts/make_demo_scene.py
  rm -rf "$run"
  mkdir "$run"
  export PYTHONWARNINGS=ignore COLUMNS=200 NUMBA_CACHE_DIR="$run/numba"
  step "$run" "$1/scene.log" "$bin/python" "$scene" --output capture --resolution 32 --train 8 --val 2 --test 2 \
    --samples 1 &&
  step "$run" "$1/scalar.log" "$bin/python" -c "$numpy_scalar" &&
  step "$run" "$1/teacher.log" "$bin/ns-train" mobiler2l-teacher-small --machine.device-type cpu --vis tensorboard \
    --data capture --max-num-iterations 2 --pipeline.datamanager.train-num-rays-per-batch 64 blender-data &&
  step "$run" "$1/student.log" "$bin/ns-train" mobiler2l-small --machine.device-type cpu --vis tensorboard \
    --data capture --max-num-iterations 2 --timestamp now --pipeline.model.network.depth 6 \
    --pipeline.model.network.width 16 --pipeline.datamanager.initial-views 2 --pipeline.datamanager.pool-views 4 \
    --pipeline.datamanager.patches-per-batch 4 &&
  step "$run" "$1/eval.log" "$bin/ns-eval" --load-config $config --output-path eval.json &&
  step "$run" "$1/export.log" "$bin/ns-export-mobiler2l" --load-config $config --output-dir export --precision int8 \
    --num-views 0
}

# One line: versions, whether it worked, why not, seconds of the smoke test.
record() { # name, ok or failed, seconds, failure
  "$work/$1/environment/bin/python" - "$@" >> "$results" << 'PYTHON'
import importlib.metadata, json, platform, sys

name, outcome, seconds, failure = sys.argv[1:]
versions = {"python": platform.python_version()}
for package in ("nerfstudio", "torch", "torchvision", "numpy", "onnx", "onnxruntime", "onnxslim", "protobuf"):
    try:
        versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pass
line = {"name": name, "ok": outcome == "ok", "seconds": int(seconds), "failure": failure or None}
print(json.dumps({**line, "versions": versions}))
PYTHON
}

try() { # name, Python, versions
  local folder=$work/$1 started
  echo "$1: Python $2, $3"
  mkdir -p "$folder"
  failure='' outcome=failed seconds=0
  if [ ! -e "$folder/installed" ]; then
    # Without the interpreter there is nothing to record.
    step . "$folder/venv.log" "$uv" venv --clear --python "$2" "$folder/environment" || return 0
    if install "$folder" "$3"; then touch "$folder/installed"; fi
  fi
  if [ -e "$folder/installed" ]; then
    if [ -n "$install_only" ]; then return; fi
    started=$SECONDS
    if smoke "$folder"; then outcome=ok; fi
    seconds=$((SECONDS - started))
  fi
  record "$1" "$outcome" "$seconds" "$failure"
  tail -n 1 "$results"
}

while read -r name python versions <&3; do
  if [ -n "$only" ] && [ "$only" != "$name" ]; then continue; fi
  if grep -q "\"name\": \"$name\"" "$results"; then
    echo "$name: done, see $results"
  else
    try "$name" "$python" "$versions"
  fi
done 3< <(combinations)
