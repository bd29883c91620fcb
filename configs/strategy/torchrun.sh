#!/bin/bash
# FSDP2 over several nodes without a scheduler. On every node, from the repository's root:
#   NODES=2 HEAD=first-node configs/strategy/torchrun.sh --config configs/EXPERIMENT.yaml …
# The run directory must lie on a file system that all nodes share.
set -euo pipefail
GPUS=${GPUS:-8}
exec torchrun --nnodes="$NODES" --nproc-per-node="$GPUS" \
    --rdzv-backend=c10d --rdzv-endpoint="$HEAD:29500" --rdzv-id=sdft \
    train.py fit "$@" --config configs/strategy/fsdp2_nodes.yaml \
    --trainer.num_nodes="$NODES" --trainer.devices="$GPUS" \
    --trainer.strategy.data_parallel_size="$((NODES * GPUS))"
