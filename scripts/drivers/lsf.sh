#!/usr/bin/env bash
#BSUB -J laue-dask-run
#BSUB -n 2
#BSUB -M 8GB
#BSUB -W 24:00
#BSUB -wt 5
#BSUB -wa USR1
#BSUB -r
#BSUB -Q 99
# Runs `laue-dask` as a job of its own, which hands in the workers' jobs (cluster.kind: lsf in the configuration).
# Write your command here, or give it: COMMAND="run SOURCE --out RUN --config lsf.yaml" bsub < scripts/drivers/lsf.sh
# Five minutes before its limit (-wt) it stops in order and ends with 99, at which LSF queues it again (-Q); there the
# same command goes on where it stopped. LAUE_DASK names the command where it is not on the PATH.
${LAUE_DASK:-laue-dask} ${COMMAND:-run SOURCE --out RUN --config lsf.yaml} &
driver=$!
stop() { kill -TERM "$driver" 2>/dev/null; wait "$driver"; }
trap 'stop; exit 99' USR1
trap 'stop; exit 143' TERM
wait "$driver"
