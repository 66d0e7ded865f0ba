import gc
import subprocess
import sys

import pytest

from laue_dask.runtime import imports


@pytest.mark.parametrize("collected", [True, False])
def test_garbage_is_collected_afterwards_if_it_was_before(collected):
    (gc.enable if collected else gc.disable)()
    try:
        with imports.without_garbage_collection():
            assert not gc.isenabled()
        assert gc.isenabled() == collected
        with pytest.raises(ImportError), imports.without_garbage_collection():
            import laue_dask.there_is_no_such_module  # noqa: F401
        assert gc.isenabled() == collected
    finally:
        gc.enable()
        gc.unfreeze()


def test_what_workers_need_is_imported_and_what_is_missing_left_out():
    code = (
        "import gc, sys\nfrom laue_dask.runtime import imports\n"
        "imports.WORKER_MODULES += ('laue_dask.no_such_module',)\n"
        "imports.import_worker_modules()\n"
        "print(all(name in sys.modules for name in imports.WORKER_MODULES[:-1]), gc.isenabled())\n"
        "print(gc.get_freeze_count() > 1e5)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["True", "True", "True"]
