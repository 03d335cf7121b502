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
processes=($!)
python "$@" "${together[@]}" --process_id=0 &
processes+=($!)

# Both save a checkpoint after the rounds that are running, and end.
stop() {
  kill -TERM $(jobs -pr) 2>/dev/null || true
}
trap stop TERM INT HUP

while [ -n "$(jobs -pr)" ]; do
  # Where one fails, the other would wait for it.
  wait -n || stop
done
status=0
for process in "${processes[@]}"; do
  wait "$process" || status=$?
done
exit "$status"
