"""The fork server imports this module, and with it all that workers need (see `fork_server`)."""

from laue_dask.runtime import imports

imports.import_worker_modules()
