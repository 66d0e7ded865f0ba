#!/usr/bin/env bash
#PBS -N laue-dask-run
#PBS -l select=1:ncpus=2:mem=8gb
#PBS -l walltime=24:00:00
#PBS -r y
# Runs `laue-dask` as a job of its own, which hands in the workers' jobs (cluster.kind: pbs in the configuration).
# Write your command here, or give it: qsub -v COMMAND="run SOURCE --out RUN --config pbs.yaml" scripts/drivers/pbs.sh
# PBS ends it at its walltime with SIGTERM, at which it stops in order; the same command, handed in again, goes on where
# it stopped. -r y: after the loss of a node PBS itself runs it again. LAUE_DASK names the command if not on the PATH.
cd "$PBS_O_WORKDIR" || exit 1
${LAUE_DASK:-laue-dask} ${COMMAND:-run SOURCE --out RUN --config pbs.yaml} &
driver=$!
trap 'kill -TERM "$driver" 2>/dev/null; wait "$driver"; exit 143' TERM
wait "$driver"
