#!/bin/bash
# FSDP2 over several nodes under SLURM. From the repository's root:
#   sbatch --nodes=2 configs/strategy/slurm.sh --config configs/EXPERIMENT.yaml …
# The run directory must lie on a file system that all nodes share.
#SBATCH --job-name=sdft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
set -euo pipefail
srun --kill-on-bad-exit=1 python train.py fit "$@" --config configs/strategy/fsdp2_nodes.yaml \
    --trainer.num_nodes="$SLURM_JOB_NUM_NODES" --trainer.devices="$SLURM_NTASKS_PER_NODE" \
    --trainer.strategy.data_parallel_size="$SLURM_NTASKS"
