#!/usr/bin/env bash
# The same command on every host of a Cloud TPU slice; the hosts find each other.
#
#   TPU=NAME ZONE=ZONE experiments/launch/tpu_pod.sh experiments/train.py \
#       --config=configs/quickstart.py --workdir=WORKDIR
#
# pfljax lies in ~/pfljax on every host, installed there with jax[tpu]. WORKDIR lies where all hosts
# can read it, such as a mounted bucket or an NFS share.
set -euo pipefail

command=$(printf '%q ' python "$@" --distributed)
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="cd ~/pfljax && $command"
