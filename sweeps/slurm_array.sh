#!/usr/bin/env bash
# A sweep as a Slurm array whose tasks share one results folder: each takes packs that no other has.
#   sbatch sweeps/slurm_array.sh rank=4,8 seqlen=128 out=outputs/array
#   sbatch --array=0-15 --partition=gpu sweeps/slurm_array.sh -f law model=smollm2_135m out=outputs/law_smol
# Arguments are those of pml sweep. Submitting the same again does what is missing. Tasks that find no pack free end at once:
# `pml sweep ... --dry-run` lists the packs, launch.pack_tokens=N makes smaller ones. (pml sweep ... launch=slurm submits
# by itself.)
#
# To edit, or to give to sbatch: what your site wants, tasks, GPU and time of one task.
##SBATCH --partition=gpu
##SBATCH --account=me
#SBATCH --job-name=pml
#SBATCH --array=0-3
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
# SIGTERM before the limit, or when a job of more weight wants the node: pml keeps a checkpoint, the task queues again
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%A_%a.log
set -euo pipefail

if [ $# = 0 ] || [ "$1" = -h ] || [ "$1" = --help ]; then
  sed -n '2,/^#$/s/^# \{0,1\}//p' "$0"
  exit
fi

# To edit: your environment
# source ~/venv/bin/activate

code=0
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" pml sweep "$@" --no-wait || code=$?
if [ $code = 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi # 143: ended by SIGTERM
exit $code
