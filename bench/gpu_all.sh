#!/usr/bin/env bash
# What only a GPU can tell, in stages that each end within nine minutes and leave one archive: for a rented machine
# without internet. docs/gpu.md says what to bring, the calls, and how to read what comes back.
#
#     bash bench/gpu_all.sh [--rehearse] [--out FOLDER] [STAGE ...]    all stages by default, the most valuable first
#
#     a  parity: every vector of the samplers; the networks in every precision; CUDA graphs; decoded frames; drift
#     b  the sampling kernel against the bandwidth of a copy, the network, the throughput benchmark
#     c  the decoding engines at 1, 7, 14 and 21 sessions by codec, alone and with sampling
#     d  files to scores a second, by decoder and precision
#     e  training: steps, and a run on files
#     f  the whole test suite; a test that is skipped for want of a GPU fails
#
# Leaves FOLDER/gpu-STAGE.tar.gz of each stage (FOLDER: $OUT, or runs/gpu): tables, to which rows are appended as they
# are measured, and the log. Exit status: the number of steps that failed. Steps whose libraries are missing are named
# and left out. --rehearse runs every step on a CPU with stand-ins, in a minute.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-runs/gpu} rehearse="" stages=()
while [ $# -gt 0 ]; do
    case $1 in
        --rehearse) rehearse=--rehearse ;;
        --out)
            shift
            out=${1:?--out needs a folder}
            ;;
        [a-f]) stages+=("$1") ;;
        *) echo "unknown argument $1: stages are a b c d e f, options --rehearse and --out FOLDER" >&2 && exit 100 ;;
    esac
    shift
done
[ ${#stages[@]} -gt 0 ] || stages=(a b c d e f)
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
if [ -n "$rehearse" ]; then
    export TRITON_INTERPRET=1 CUDA_VISIBLE_DEVICES=""
else
    python3 -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "no GPU: --rehearse runs without one")' ||
        exit 100
fi
mkdir -p "$out"
failed=0
for stage in "${stages[@]}"; do
    folder=$out/gpu-$stage
    rm -rf "$folder" && mkdir -p "$folder"
    # Steps have their own limits; this one is for a stage that does not even keep to those.
    timeout --kill-after=5 530 python3 bench/gpu_stages.py "$stage" --out "$folder" $rehearse 2>&1 |
        tee "$folder/log.txt" | tail -n 80
    status=${PIPESTATUS[0]}
    [ "$status" -eq 0 ] || failed=$((failed + (status < 100 ? status : 1)))
    # Only tables and logs come back, each of at most 2 MB: the archive has to stay below 16.
    find "$folder" -mindepth 1 ! -name '*.csv' ! -name '*.json' ! -name '*.xml' ! -name '*.txt' ! -type d -delete
    find "$folder" -type f -size +2M -exec truncate --size=2M {} +
    tar -czf "$out/gpu-$stage.tar.gz" -C "$out" "gpu-$stage"
    echo "== stage $stage: $(du -k "$out/gpu-$stage.tar.gz" | cut -f1) KiB in $out/gpu-$stage.tar.gz"
done
exit "$failed"
