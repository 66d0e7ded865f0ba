#!/usr/bin/env bash
#SBATCH --job-name=laue-dask-run
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --open-mode=append
# Runs `laue-dask` as a job of its own, which hands in the workers' jobs (cluster.kind: slurm in the configuration):
#   sbatch [--partition=...] scripts/drivers/slurm.sh run SOURCE --out RUN --config slurm_cpu.yaml
# Five minutes before its walltime it stops in order and puts itself back into the queue; there, or after a preemption,
# the same command goes on where it stopped. LAUE_DASK names the command where it is not on the PATH.
${LAUE_DASK:-laue-dask} "$@" &
driver=$!
stop() { kill -TERM "$driver" 2>/dev/null; wait "$driver"; }
trap 'stop; scontrol requeue "$SLURM_JOB_ID"; exit 0' USR1
trap 'stop; exit 143' TERM
wait "$driver"
