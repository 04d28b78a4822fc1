#!/usr/bin/env bash
# Everything that only a GPU can tell: the tests with no skip, the kernel against the copy bandwidth with a sweep of its
# configurations, the throughput benchmark, and the decoders that need a GPU (DALI, PyNvVideoCodec): their tests, their
# rates alone and with sampling, and DALI's colours. Logs and rows go to $OUT_DIR, bench/results by default.
#
#     bash bench/gpu_all.sh [STEP ...]     steps: libraries tests kernel sweep decoder-tests color decoders throughput
#                                          images train all-tests; default all of them
#
# "libraries" fails where one is missing, with the command that installs it. The decoders need the driver's video part
# (libnvcuvid; in containers NVIDIA_DRIVER_CAPABILITIES must have "video").
# A step is stopped after $STEP_SECONDS (180). Where a package is missing (PyAV, say), the steps that need it fail and the
# others go on. Exit status: the number of steps that failed.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT_DIR:-bench/results}
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 SAMA_REQUIRE_CUDA=1
device=$(python3 -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-"))') || exit 100
nvidia-smi -L
find / -name 'libnvcuvid*' -not -path '/proc/*' 2>/dev/null | sed 's/^/video decoding: /'
failed=0

step() {
    local name=$1
    shift
    echo "== $name"
    timeout "${STEP_SECONDS:-180}" "$@" 2>&1 | tee "$out/$name-$device.log" | tail -n 40
    local status=${PIPESTATUS[0]}
    echo "== $name: exit $status"
    [ "$status" -eq 0 ] || failed=$((failed + 1))
}

libraries='
import importlib, sys
missing = 0
for name, install in (("av", "av"), ("triton", "triton"), ("nvidia.dali.experimental.dynamic", "nvidia-dali-cuda130"),
                      ("PyNvVideoCodec", "PyNvVideoCodec")):
    try:
        module = importlib.import_module(name)
        print(name, getattr(module, "__version__", ""), "ok")
    except Exception as error:
        missing += 1
        print(f"{name} cannot be used: {error}; pip install {install}")
sys.exit(missing)
'

for name in "${@:-libraries tests kernel sweep decoder-tests color decoders throughput images train all-tests}"; do
    for one in $name; do
        case $one in
            tests) step tests python3 -m pytest -q -p no:cacheprovider tests/test_golden.py tests/test_fused.py ;;
            libraries) step libraries python3 -c "$libraries" ;;
            decoder-tests)
                step decoder-tests python3 -m pytest -q -p no:cacheprovider -rs tests/test_dali.py tests/test_nvcodec.py \
                    tests/test_choosing.py
                ;;
            color) step color python3 bench/color.py --device cuda --out "$out/color-$device.csv" ;;
            decoders)
                for codec in h264 hevc vp9; do
                    step "decoders-$codec" python3 bench/decoders.py --sizes 1080p --seconds 5 --codecs "$codec" \
                        --concurrency 1,4,16 --repeats 3 --out "$out/decoders-$codec-$device.csv"
                done
                ;;
            kernel) step kernel python3 bench/gpu.py --json "$out/kernel-$device.jsonl" ;;
            sweep) step sweep python3 bench/gpu.py --sweep --json "$out/sweep-$device.jsonl" ;;
            throughput) step throughput python3 bench/throughput.py --sizes 1080p --repeats 3 ;;
            images) step images python3 bench/throughput.py --images --repeats 3 ;;
            train) step train python3 bench/throughput.py --quick --train --out "$out/training-$device.csv" ;;
            all-tests) step all-tests python3 -m pytest -q -p no:cacheprovider ;;
            *) echo "unknown step $one" && failed=$((failed + 1)) ;;
        esac
    done
done
exit "$failed"
