#!/usr/bin/env bash
# Runs the same command on every host of a Cloud TPU slice; JAX detects the other hosts.
#
#   TPU=NAME ZONE=ZONE experiments/launch/tpu_pod.sh experiments/train.py \
#       --config=configs/quickstart.py --workdir=WORKDIR
#
# Every host needs pfljax in ~/pfljax, installed with jax[tpu]. WORKDIR must be readable by all hosts,
# such as a mounted bucket or an NFS share.
set -euo pipefail

command=$(printf '%q ' python "$@" --distributed)
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="cd ~/pfljax && $command"
