#!/usr/bin/env bash
# Two nodes of eight GPUs as one Ray cluster; fuseval runs on the first. sbatch examples/cluster/slurm.sh EXPERIMENT.yaml
# Every node needs the same environment (activate yours below) and sees models, ledger and checkpoints by the same path.
#SBATCH --job-name=fuseval
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
set -euo pipefail

experiment=${1:?give an experiment with engine: {kind: ray, address: auto}}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# Starts Ray on every node, runs the command on the first once all are there, and stops Ray. A job that ran out of
# time is submitted again as it is: what is in the ledger is not asked twice.
srun --kill-on-bad-exit=1 ray symmetric-run \
    --address "$head:6379" --min-nodes "$SLURM_NNODES" \
    --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus=8 --disable-usage-stats \
    -- fuseval run "$experiment"
