#!/usr/bin/env bash
# bench/gpu_session.sh OUT: everything to be learned from one NVIDIA GPU, in under ten minutes, as files in OUT. Each step has
# its own time limit, writes as it goes and does not stop the others; OUT/steps.txt tells how each ended.
#
#   bench/gpu_session.sh --prepare   on the building machine, before a session on a machine without compilers: builds the
#                                    libraries and runs the host runner's side of the comparison into build/gpu_session
#
# Exit: 0 all steps passed, 1 some did not, 3 there is no GPU. PYTHON chooses the interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}"
RECORDED=build/gpu_session/host_exec.pt
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

if [ "${1:-}" = --prepare ]; then
  "$PYTHON" setup.py -q build_ext --inplace && "$PYTHON" bench/gpu_compare.py record "$RECORDED"
  exit
fi
OUT="${1:?usage: bench/gpu_session.sh OUT | --prepare}"
mkdir -p "$OUT"
failed=0
: >"$OUT/steps.txt"

step() {  # step NAME SECONDS COMMAND...
  local name="$1" limit="$2" status=0 start=$SECONDS
  shift 2
  timeout "$limit" "$@" >"$OUT/$name.log" 2>&1 || status=$?
  [ "$status" -eq 0 ] || failed=1
  echo "$name: exit $status after $((SECONDS - start)) s" | tee -a "$OUT/steps.txt"
}

"$PYTHON" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else 3)' || { echo "no CUDA device for torch" >&2; exit 3; }
if [ ! -e flagattn/_C_cuda.so ]; then
  step build 240 "$PYTHON" setup.py -q build_ext --inplace
fi
step info 60 "$PYTHON" -m flagattn
if [ ! -e "$RECORDED" ]; then
  step record 200 "$PYTHON" bench/gpu_compare.py record "$RECORDED"
fi
step compare 60 "$PYTHON" bench/gpu_compare.py compare "$RECORDED" "$OUT/compare.json"
step tests 200 "$PYTHON" -m pytest -m gpu -q --junitxml="$OUT/tests.xml"
if command -v compute-sanitizer >/dev/null; then
  step sanitizer 60 compute-sanitizer --error-exitcode 9 "$PYTHON" -m pytest -m gpu -q -k "odd_lengths and oracle"
fi
step bench 180 "$PYTHON" bench/gpu_attention.py "$OUT/attention.json"
exit "$failed"
