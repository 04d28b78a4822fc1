#!/usr/bin/env bash
# Everything that only a GPU can tell, in one call: the tests with no skip, the kernel against the copy bandwidth with
# a sweep of its configurations, and the throughput benchmark. Results go to the folder given, bench/results by default.
#
#     bash bench/gpu_all.sh [FOLDER]
#
# Packages that are missing (PyAV, say) make only the steps that need them fail; each step's exit status is reported.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-bench/results}
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 SAMA_REQUIRE_CUDA=1
device=$(python3 -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-"))') || exit 1
nvidia-smi -L
find / -name 'libnvcuvid*' -not -path '/proc/*' 2>/dev/null | sed 's/^/video decoding: /'

step() {
    local name=$1
    shift
    echo "== $name"
    timeout "${STEP_SECONDS:-240}" "$@" 2>&1 | tee "$out/$name-$device.log" | tail -n 40
    echo "== $name: exit ${PIPESTATUS[0]}"
}

step tests-kernels python3 -m pytest -q -p no:cacheprovider -m cuda tests/test_golden.py tests/test_fused.py
step tests-fused python3 -m pytest -q -p no:cacheprovider tests/test_fused.py
step kernel python3 bench/gpu.py --json "$out/kernel-$device.json"
step kernel-sweep python3 bench/gpu.py --sweep --json "$out/kernel-sweep-$device.json"
step throughput python3 bench/throughput.py --sizes 1080p --out "$out/throughput-$device.csv"
step tests python3 -m pytest -q -p no:cacheprovider
