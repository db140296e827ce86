#!/bin/bash
# Trains on all workers of a TPU VM slice:
#   TPU=my-v5e-256 ZONE=us-west4-a launch/tpu_vm.sh --config=... --workdir=gs://...
# The repository is at ~/fsa on every worker, installed there; see docs/pods.md.
set -u
: "${TPU:?the name of the TPU VM}" "${ZONE:?its zone}"

train="cd ~/fsa && .venv/bin/fsa train $(printf '%q ' "$@")"
# Every worker starts again after exit code 75: SIGTERM stopped the run, which is saved.
again="while $train; [ \$? = 75 ]; do echo 'stopped in time, starting again'; done"
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$again"
