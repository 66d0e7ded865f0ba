"""Errors and the exit codes that go with them."""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every ``laue-dask`` command."""

    DONE = 0
    FAILED = 1
    BAD_INPUT = 2
    SET_ASIDE = 3
    """Finished, with some patterns set aside."""


class LaueDaskError(Exception):
    """Base class: its message is one line that says what, where, both values and what to do."""

    exit_code = ExitCode.FAILED


class InputError(LaueDaskError, ValueError):
    """The user's input cannot be used as it is: a path, an option, a file's content."""

    exit_code = ExitCode.BAD_INPUT


class ConfigError(InputError):
    """The configuration file has an unknown key or an impossible value."""


class StoreError(InputError):
    """A scan store, a results store or a weights file is missing, incomplete or not what it says it is."""


class ChangedError(InputError):
    """The frames of a run, or how they are to be read, are not those of an earlier run in the same folder."""


class SpaceError(InputError):
    """A disk has too little room for what is to be written."""


class BusyError(InputError):
    """Another process owns what is to be written."""


class FrameError(LaueDaskError, ValueError):
    """One frame cannot be used; it is set aside and the scan goes on. The message is the reason alone."""


class ComputeError(LaueDaskError, RuntimeError):
    """The computation could not be finished: a worker died too often, the disk is full, nothing moves."""


class DiskFullError(ComputeError):
    """A disk has become full, or a quota is used up, while something was written to `place`."""

    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(message)
        self.place = place

    def __reduce__(self) -> tuple[type["DiskFullError"], tuple[str, str]]:
        return type(self), (str(self), self.place)
