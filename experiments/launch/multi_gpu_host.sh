#!/usr/bin/env bash
# One process that uses all GPUs of this host.
#
#   experiments/launch/multi_gpu_host.sh experiments/train.py \
#       --config=configs/quickstart.py --workdir=WORKDIR
#
# CUDA_VISIBLE_DEVICES=0,1 selects some of them.
set -euo pipefail

# Without a GPU, JAX would fall back to the CPU; fail instead.
export JAX_PLATFORMS=cuda
# JAX preallocates 75 % of a GPU's memory by default; these GPUs run no other process.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"

exec python "$@"
