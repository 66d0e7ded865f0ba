"""TLS credentials for the workers of one run, which nobody else can read.

On this machine they stay in memory: workers are given them through the pipe that starts them. Only jobs of a batch
system, on other machines, need them as files.
"""

import os
import shutil
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distributed import Security

from laue_dask.errors import ComputeError

CREDENTIALS_FOLDER = "credentials"

CERTIFICATE_VALIDITY = datetime(2000, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)
"""First and last day of a certificate: it goes with its run, and clocks of machines differ or are set."""

TLS_ROLES = "client", "scheduler", "worker"

NOT_OWNER_MODE_BITS = 0o077
"""Bits of a file's mode that let anybody but its owner use it."""


class InMemory(Security):
    """Credentials whose texts are handed to OpenSSL without a file that has a name."""

    def _get_tls_context(self, tls: dict[str, Any], purpose: ssl.Purpose) -> Any:
        # Dask writes them to a temporary folder for a moment, where a process that is killed leaves the key.
        if not hasattr(os, "memfd_create"):
            return super()._get_tls_context(tls, purpose)  # type: ignore[no-untyped-call]
        with os.fdopen(os.memfd_create("credentials"), "w") as memory:
            memory.write(f"{tls['cert']}\n{tls['key']}\n")
            memory.flush()
            unnamed = tls | {"cert": f"/proc/self/fd/{memory.fileno()}", "key": None}
            return super()._get_tls_context(unnamed, purpose)  # type: ignore[no-untyped-call]


def new() -> Security:
    """Return new credentials that are in memory alone: a key and a certificate that only its holders accept.

    The key is of an elliptic curve, which is made in less than a millisecond; one of RSA takes a tenth of a second.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    signing = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "laue-dask")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(signing.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(CERTIFICATE_VALIDITY[0])
        .not_valid_after(CERTIFICATE_VALIDITY[1])
        .sign(signing, hashes.SHA256())
    )
    cert = certificate.public_bytes(serialization.Encoding.PEM).decode()
    key = signing.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    roles = {f"tls_{role}_cert": cert for role in TLS_ROLES} | {f"tls_{role}_key": key for role in TLS_ROLES}
    return InMemory(require_encryption=True, tls_ca_file=cert, **roles)  # type: ignore[no-untyped-call]


@contextmanager
def temporary(folder: Path) -> Iterator[tuple[Security, Security]]:
    """Make new credentials for one cluster whose workers are on other machines.

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
    here, place = new(), folder / CREDENTIALS_FOLDER
    try:
        yield here, _written(here, place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _written(here: Security, place: Path) -> Security:
    there = Security(require_encryption=True)
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
            if file.stat().st_mode & NOT_OWNER_MODE_BITS:
                raise ComputeError(
                    f"{file}: the file system lets others read this file: put the run on a file system that does not"
                )
            setattr(there, attribute, str(file))
    except OSError as error:
        raise ComputeError(f"{place}: credentials cannot be written: {error.strerror or error}") from error
    return there


def of_files(ca: Path | None, cert: Path | None, key: Path | None) -> Security:
    """Return credentials that exist already; those of Dask's own configuration where nothing is given."""
    given = {"tls_ca_file": ca, "tls_client_cert": cert, "tls_client_key": key}
    return Security(require_encryption=True, **{name: str(path) for name, path in given.items() if path is not None})
