"""Keep libraries to one thread, because the number of threads changes the last bits of their sums."""

from contextlib import AbstractContextManager
from functools import cache
from typing import Any, cast

from threadpoolctl import ThreadpoolController


def one_thread() -> AbstractContextManager[Any]:
    """Keep the linear algebra and the loops of the libraries that are loaded to one thread.

    Where several threads work side by side, their caller holds this as well: it is not theirs to give back.
    """
    return cast(AbstractContextManager[Any], _libraries().limit(limits=1))


@cache
def _libraries() -> ThreadpoolController:
    # It looks for them in all that the process has loaded, which takes longer than many a fit.
    import sklearn.cluster  # noqa: F401  or its libraries might come later

    return ThreadpoolController()
