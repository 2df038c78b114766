#!/usr/bin/env bash
# Test and measure the package on one GPU, in less than eight minutes. Run it
# in an environment with PyTorch for CUDA, which PYTHON names if it is not the
# one of the Makefile:
#
#     PYTHON=python benchmark/cuda/run.sh
#
# Writes benchmark/results/cuda/<name of the card>.txt.
set -euo pipefail
cd "$(dirname "$0")/../.."
unset CUDA_LAUNCH_BLOCKING  # It would add the time of launches to each kernel.
export PYTHONUNBUFFERED=1  # A part that runs out of time leaves its rows.

python=${PYTHON:-.venv/bin/python}
if ! card=$("$python" -c '
import re, torch
if not torch.cuda.is_available():
    raise SystemExit(1)
name = torch.cuda.get_device_name(0).lower()
print(re.sub("[^a-z0-9]+", "-", name).strip("-"))
'); then
    echo "run.sh: no GPU: '$python' has no PyTorch that finds one" >&2
    exit 1
fi

# Calibrate anew, and leave the cache of the user alone.
calibrations=$(mktemp -d)
trap 'rm -rf "$calibrations"' EXIT
export TORCH_GEOMETRIC_EXT_CALIBRATION=$calibrations

failed=()
part() {  # Run a command for at most some seconds.
    local limit=$1 status=0
    shift
    printf '\n$ python %s\n' "$*"
    SECONDS=0
    timeout -k 5 "$limit" "$python" "$@" || status=$?
    echo "# $SECONDS s, exit status $status (124: limit of $limit s)"
    [ "$status" -eq 0 ] || failed+=("$*")
}

run() {
    if command -v nvidia-smi > /dev/null; then  # The driver.
        nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
    fi
    git log -1 --format='commit %h' 2> /dev/null || true
    part 100 -m pytest test -q -k 'cuda:0 or gpu_linear' --maxfail 20
    part 190 -W ignore -m benchmark.cuda.sparse_linear
    part 75 -W ignore -m benchmark.cuda.shared_trees
    part 35 -W ignore -m benchmark.cuda.gder_overhead
    part 70 -W ignore -m benchmark.cuda.lottery
    if [ "${#failed[@]}" -gt 0 ]; then
        printf '\nfailed:\n'
        printf '  %s\n' "${failed[@]}"
        return 1
    fi
}

out=benchmark/results/cuda/$card.txt
mkdir -p "$(dirname "$out")"
run 2>&1 | tee "$out"
