"""TLS for clusters on a network: temporary credentials that nobody else can read, gone when the cluster is."""

import copy
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distributed import Security

from laue_dask.errors import ComputeError

FOLDER = "credentials"


@contextmanager
def temporary(folder: Path) -> Iterator[tuple[Security, Security]]:
    """New credentials, for one cluster.

    Parameters
    ----------
    folder
        Where the workers' files are put while they are used, in a folder of their own; the workers' nodes must see it.
        What a killed owner left there is removed.

    Yields
    ------
    here, there
        For the scheduler and the client, in memory; and for workers, as names of files.

    Raises
    ------
    ComputeError
        The files cannot be written, or not be kept from others.
    """
    here, place = Security.temporary(), folder / FOLDER
    try:
        yield here, _written(here, place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _written(here: Security, place: Path) -> Security:
    there = copy.copy(here)
    try:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(mode=0o700, parents=True)
        for attribute, name in (("tls_ca_file", "ca"), ("tls_worker_cert", "cert"), ("tls_worker_key", "key")):
            file = place / f"{name}.pem"
            # The mode is the file's from its first moment on, whatever the umask.
            with os.fdopen(
                os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii"
            ) as writing:
                writing.write(getattr(here, attribute))
            if file.stat().st_mode & 0o077:
                raise ComputeError(f"{file}: the file system lets others read it: put the run on one that does not")
            setattr(there, attribute, str(file))
    except OSError as error:
        raise ComputeError(f"{place}: credentials cannot be written: {error.strerror or error}") from error
    return there


def of_files(ca: Path | None, cert: Path | None, key: Path | None) -> Security:
    """Credentials that are there already; those of Dask's own configuration where nothing is given."""
    given = {"tls_ca_file": ca, "tls_client_cert": cert, "tls_client_key": key}
    return Security(require_encryption=True, **{name: str(path) for name, path in given.items() if path is not None})
