#!/usr/bin/env bash
# Two processes on this machine's CPU, working as one run: a rehearsal for a cluster.
#
#   experiments/launch/two_local_processes.sh experiments/train.py \
#       --config=configs/quickstart.py --workdir=WORKDIR
#
# PORT (9476 by default) is where process 0 listens.
set -euo pipefail

export JAX_PLATFORMS=cpu
together=(--coordinator="127.0.0.1:${PORT:-9476}" --num_processes=2)

python "$@" "${together[@]}" --process_id=1 &
second=$!
# Where process 0 fails, process 1 would wait for it.
trap 'kill "$second" 2>/dev/null || true' EXIT
python "$@" "${together[@]}" --process_id=0
wait "$second"
