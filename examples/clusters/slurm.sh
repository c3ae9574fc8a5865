#!/usr/bin/env bash
# A training run on Slurm: `sbatch slurm.sh` in a folder that all nodes share; see docs/clusters.md. Not run on a cluster.
# Before its time is over, or when it is preempted, the run saves a checkpoint and the script queues itself again.
#SBATCH --job-name=blip3o-rl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@900
set -uo pipefail

RUN=$PWD/runs/shapes-$SLURM_JOB_ID
GRACE=600                                    # seconds for a step and its checkpoint; less than --signal's 900
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
ADDRESS=$(srun --nodes=1 --ntasks=1 -w "$HEAD" hostname --ip-address | awk '{print $1}'):6379
export RAY_AUTH_MODE=disabled                # or a token in ~/.ray/auth_token

srun --nodes=1 --ntasks=1 --overlap -w "$HEAD" ray start --head --port=6379 --block &
sleep 30
if [ "$SLURM_NNODES" -gt 1 ]; then
    srun --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --overlap -x "$HEAD" \
        ray start --address="$ADDRESS" --block &
    sleep 30
fi

if [ -f "$RUN/config.yaml" ]; then
    WORDS=(--resume "$RUN")
else
    WORDS=(recipes/shapes "model.folder=$PWD/models/blip3o-next" "run.folder=$RUN" "run.grace_s=$GRACE"
        "trainer.nnodes=$SLURM_NNODES" "trainer.n_gpus_per_node=$SLURM_GPUS_PER_NODE")
fi
# On the batch node, which is the head, and not through srun: only this script and the run get the signal.
RAY_ADDRESS=$ADDRESS blip3o-rl train "${WORDS[@]}" &
TRAIN=$!
trap 'kill -TERM "$TRAIN"' TERM
wait "$TRAIN"; CODE=$?
[ "$CODE" -gt 128 ] && kill -0 "$TRAIN" 2>/dev/null && { wait "$TRAIN"; CODE=$?; }   # the trap ends the first wait
[ "$CODE" -eq 143 ] && scontrol requeue "$SLURM_JOB_ID"
exit "$CODE"
