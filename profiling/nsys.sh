#!/usr/bin/env bash
# Records a run in Nsight Systems: nsys.sh REPORT [options of gsio run]
#   profiling/nsys.sh report -n 200 --output /tmp/run.h5 && nsys stats -r nvtx_pushpop_sum,cuda_gpu_sum report.nsys-rep
set -euo pipefail
report=$1; shift
exec nsys profile --force-overwrite=true --sample=none --cpuctxsw=none --trace=cuda,nvtx --cuda-graph-trace=node \
    --output "$report" gsio run "$@"
