#!/usr/bin/env bash
# One process that uses all GPUs of this host.
#
#   experiments/launch/multi_gpu_host.sh experiments/train.py \
#       --config=configs/quickstart.py --workdir=WORKDIR
#
# CUDA_VISIBLE_DEVICES=0,1 takes only some of them.
set -euo pipefail

# Without a GPU JAX would go on with the CPU; better to stop.
export JAX_PLATFORMS=cuda
# JAX takes 75 % of a GPU's memory at once; nobody else is to use these GPUs.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"

exec python "$@"
