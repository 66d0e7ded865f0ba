"""Imported by the process that workers are forked from: with it comes all that they need (see `forks`)."""

from laue_dask.runtime import imports

imports.import_worker_modules()
