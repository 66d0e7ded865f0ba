"""Loops that numba compiles."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile with numba, without the GIL; kept on disk for the next process where a folder for it can be written."""
    try:
        return cast(F, njit(cache=True, nogil=True)(function))
    except RuntimeError:  # numba's word for no such folder: a read-only installation and no home
        return cast(F, njit(nogil=True)(function))
