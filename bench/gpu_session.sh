#!/usr/bin/env bash
# bench/gpu_session.sh OUT [CHUNK...]: what is to be learned from one NVIDIA GPU, as a few files in OUT. Each step has a
# time limit, writes as it goes and does not stop the others; OUT/steps.txt tells how each ended, OUT/session.log holds
# what all printed. The whole call ends within BUDGET seconds (540 by default).
#
#   build   compiles the libraries and the programs, where --prepare has not been run before
#   check   single instructions and launches against their host twins, first of all: the host runner's truth rests on them;
#           then the kernels against the oracle and beside what the runner recorded (compare.json)
#   tests   pytest -m gpu, its files side by side (tests.jsonl), and compute-sanitizer on a few if it is there
#   bench   attention (attention.json) and the fused ops (fused.json) against torch and the machine's rates
#
# Without a CHUNK it is all of them, of the first only what is missing. A chunk that is run alone has longer limits. PLAN=1
# prints the steps and their limits and runs nothing.
#
#   bench/gpu_session.sh --prepare   on the building machine, before a session on a machine without compilers: builds all that
#                                    and runs the host runner's side of the comparison into build/gpu_session
#
# Exit: 0 all steps passed, 1 some did not, 3 there is no GPU. PYTHON chooses the interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}"
RECORDED=build/gpu_session/host_exec.pt
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

if [ "${1:-}" = --prepare ]; then
  "$PYTHON" setup.py -q build_ext --inplace && "$PYTHON" -m tests.cuda.programs && "$PYTHON" bench/gpu_compare.py record "$RECORDED"
  exit
fi
OUT="${1:?usage: bench/gpu_session.sh OUT [build|check|tests|bench ...] | --prepare}"
shift
for chunk in "$@"; do
  case "$chunk" in build | check | tests | bench) ;; *) echo "no chunk is named $chunk" >&2; exit 2 ;; esac
done
CHUNKS=" ${*:-build check tests bench} "
END=$((SECONDS + ${BUDGET:-540}))

does() { case "$CHUNKS" in *" $1 "*) true ;; *) false ;; esac; }
if [ $# -eq 1 ]; then seconds() { echo "$1"; }; else seconds() { echo "$2"; }; fi  # seconds ALONE AMONG_OTHERS

step() {  # step NAME SECONDS COMMAND...
  local name="$1" limit="$2" status=0 start=$SECONDS left=$((END - SECONDS)) log
  shift 2
  if [ -n "${PLAN:-}" ]; then echo "$name $limit"; return; fi
  [ "$limit" -le "$left" ] || limit=$left
  if [ "$limit" -lt 5 ]; then echo "$name: skipped, the time is up" | tee -a "$OUT/steps.txt"; return; fi
  log=$(mktemp)
  timeout -k 5 "$limit" "$@" >"$log" 2>&1 || status=$?
  { echo "==== $name: $*"; cat "$log"; } >>"$OUT/session.log"
  rm -f "$log"
  echo "$name: exit $status after $((SECONDS - start)) of $limit s" | tee -a "$OUT/steps.txt"
}

tests() {  # Side by side; the programs have been run by then
  local limit file jobs=()
  limit=$(seconds 420 170)
  if [ -n "${PLAN:-}" ]; then echo "tests $limit"; return; fi
  for file in $(grep -l '^import pytest' tests/cuda/test_*.py | xargs grep -l 'mark.gpu' | grep -v -e instructions -e launch); do
    step "$file" "$limit" env GPU_TEST_RESULTS="$OUT/tests.jsonl" "$PYTHON" -m pytest -m gpu -v --tb=short --maxfail=20 \
      -p no:cacheprovider -p bench.gpu_test_results "$file" &
    jobs+=($!)
  done
  wait "${jobs[@]}"
}

if [ -z "${PLAN:-}" ]; then
  "$PYTHON" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else 3)' || { echo "no CUDA device for torch" >&2; exit 3; }
  mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) || exit 2
  : >"$OUT/steps.txt"
fi
if does build && { [ $# -gt 0 ] || [ ! -e flagattn/_C_cuda.so ]; }; then
  step programs 60 "$PYTHON" -m tests.cuda.programs
  step build "$(seconds 460 300)" "$PYTHON" setup.py -q build_ext --inplace
fi
if does check; then
  step instructions "$(seconds 120 60)" "$PYTHON" -m tests.cuda.programs --run
  step info 20 "$PYTHON" -m flagattn
  if [ ! -e "$RECORDED" ]; then step record "$(seconds 200 60)" "$PYTHON" bench/gpu_compare.py record "$RECORDED"; fi
  step compare "$(seconds 180 90)" "$PYTHON" bench/gpu_compare.py compare "$RECORDED" "$OUT/compare.json"
fi
if does tests; then
  tests
  if [ -n "${PLAN:-}" ] || command -v compute-sanitizer >/dev/null; then
    step sanitizer "$(seconds 100 40)" compute-sanitizer --error-exitcode 9 "$PYTHON" -m pytest -m gpu -q -p no:cacheprovider \
      -k "odd_lengths and oracle" tests/cuda
  fi
fi
if does bench; then
  step attention "$(seconds 360 110)" "$PYTHON" bench/gpu_attention.py "$OUT/attention.json"
  step fused "$(seconds 150 50)" "$PYTHON" bench/gpu_fused.py "$OUT/fused.json"
fi
[ -n "${PLAN:-}" ] || ! grep -qv ': exit 0 ' "$OUT/steps.txt"
