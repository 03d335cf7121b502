#!/usr/bin/env bash
# Two processes on this machine's CPU that execute one run, to try what a cluster does.
#
#   experiments/launch/two_local_processes.sh experiments/train.py \
#       --config=configs/quickstart.py --workdir=WORKDIR
#
# PORT (9476 by default) is the port of process 0.
set -euo pipefail

export JAX_PLATFORMS=cpu
together=(--coordinator="127.0.0.1:${PORT:-9476}" --num_processes=2)

python "$@" "${together[@]}" --process_id=1 &
processes=($!)
python "$@" "${together[@]}" --process_id=0 &
processes+=($!)

# Both save a checkpoint after the current rounds and exit.
stop() {
  kill -TERM $(jobs -pr) 2>/dev/null || true
}
trap stop TERM INT HUP

while [ -n "$(jobs -pr)" ]; do
  # If one fails, the other would wait for it.
  wait -n || stop
done
status=0
for process in "${processes[@]}"; do
  wait "$process" || status=$?
done
exit "$status"
