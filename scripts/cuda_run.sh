#!/bin/bash
# Tests kvctl on a CUDA machine that can fetch nothing, and measures it: what the bundle's run.sh calls. It builds kvctl
# first where the bundle holds none that loads. What each stage printed and the figures as JSON go to the results folder;
# a stage that fails does not stop the next ones, and the last line says which failed.
#
#   cuda_run.sh BUNDLE [RESULTS]      STAGES="build micro ctest pytest bench memcheck racecheck" by default
#                                     MICRO_SECONDS=240: when micro begins no further shape
set -u
bundle=$(realpath "$1")
results=${2:-$bundle/results}
mkdir -p "$results" && results=$(realpath "$results")
python=${PYTHON:-python3}
export PYTHONPATH="$bundle/site${PYTHONPATH:+:$PYTHONPATH}" TVM_USE_RUNTIME_LIB=1
export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
export PATH="$CUDA_HOME/bin:$PATH" LD_LIBRARY_PATH="$CUDA_HOME/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
cd "$bundle/kvctl" || exit 1
failed=""

stage() {  # NAME SECONDS COMMAND...
  local name=$1 limit=$2
  shift 2
  case " ${STAGES:-build micro ctest pytest bench memcheck racecheck} " in *" $name "*) ;; *) return ;; esac
  echo "== $name: $*"
  local begin=$SECONDS
  timeout "$limit" "$@" >"$results/$name.txt" 2>&1
  local status=$?
  tail -n 25 "$results/$name.txt"
  echo "== $name: exit $status after $((SECONDS - begin)) s"
  [ $status -eq 0 ] || failed="$failed $name"
}

loads() {
  "$python" -c "import kvctl; print('kvctl', kvctl.__version__, 'loads from', kvctl.__file__)"
}

build() {
  set -e
  "$python" -m pip install --quiet --no-index --no-deps --upgrade --target "$bundle/site" "$bundle"/wheels/*.whl
  if [ -x "$bundle/bin/micro" ] && loads; then
    echo "what the bundle holds is used"
    return
  fi
  # Against the TVM of the bundle; oneDNN is not there, and nothing here needs it.
  "$python" -m pip install --no-index --no-deps --no-build-isolation --upgrade --target "$bundle/site" . \
    -C cmake.define.KVCTL_CUDA=ON -C cmake.define.KVCTL_BUILD_TESTS=ON -C build-dir="$bundle/build" \
    -C cmake.define.KVCTL_BUILD_BENCHMARKS=ON -C build.targets="kvctl;_core;kvctl_cuda;test_cuda;micro" \
    -C cmake.define.CMAKE_INSTALL_RPATH="$CUDA_HOME/lib64"
  mkdir -p "$bundle/bin"
  cp "$bundle"/build/tests/cpp/cuda/test_cuda "$bundle"/build/benchmarks/cpp/cuda/micro "$bundle/bin"
  loads
}

bench() {
  set -e
  local model=()
  if [ -d "$bundle/model" ]; then
    "$python" scripts/seed_weights.py "$bundle/model"
    model=(--model "$bundle/model")
  fi
  "$python" benchmarks/python/cuda/bench_cuda.py --json "$results/cuda.json" "${model[@]}" ${BENCH_OPTIONS:-}
}

export -f build bench loads
export bundle results python
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
stage build 600 bash -c build
tests="$bundle/bin/test_cuda"
stage micro 300 "$bundle/bin/micro" "$results/micro.json" "${MICRO_SECONDS:-240}"
stage ctest 300 "$tests"
stage pytest 400 "$python" -m pytest -m cuda -q -p no:cacheprovider tests/python/cuda/test_devices.py \
  tests/python/cuda/test_cuda_graph.py
stage bench 590 bash -c bench
sanitizer() {
  compute-sanitizer --tool "$1" --error-exitcode 9 "$tests" "$2"
}
export -f sanitizer
export tests
stage memcheck 300 bash -c "sanitizer memcheck Cuda"
stage racecheck 300 bash -c "sanitizer racecheck Cuda"
[ -z "$failed" ] && echo "all stages passed; results in $results" || { echo "failed:$failed"; exit 1; }
