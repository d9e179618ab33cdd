#!/usr/bin/env bash
# The CUDA suite and the CUDA bench on the GPU of this machine, once each: under eight minutes.
# PYTHON names the interpreter that has the project's `dev` extra and a torch with CUDA.
set -uo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-python}"
"$python" -c 'import sys, torch; torch.cuda.is_available() or sys.exit("torch sees no CUDA device here")' || exit 1

timeout 280 "$python" -m pytest -m cuda -q --durations=10 tests
suite=$?
timeout 190 "$python" -m experiments.bench.cuda
bench=$?
echo "suite: exit code $suite; bench: exit code $bench (124: it took too long)"
exit $((suite != 0 || bench != 0))
