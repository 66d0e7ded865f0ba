"""Signals at moments at which Python or what it imports would lose them, or make a traceback of them."""

import re
import signal
import subprocess
import sys

import pytest

DROPPED = {
    "finalizer": """
class Held:
    def __del__(self):
        tell(), time.sleep(0.05)
def drop():
    Held()
""",
    "collector": """
import gc
def watch(*_):
    tell(), time.sleep(0.05)
def drop():
    gc.callbacks.append(watch)
    gc.collect()
    gc.callbacks.remove(watch)
""",
    "import": """
def drop():
    try:
        tell(), time.sleep(0.05)
    except BaseException:
        pass
""",
}

INTERRUPTED = """
import os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from laue_dask.commands import main
from laue_dask.runtime import interruption

interruption.CLEANUP_TIMEOUT_S = 60.0  # a busy machine takes longer
left = [1, 2, 3]  # by turns it is told to end, and insists itself

def tell():
    if left:
        left.pop()
        os.kill(os.getpid(), {number})

{drop}
def work(**_):
    interruption.raise_on_interrupt()
    try:
        for _ in range(100):
            drop()
            time.sleep(0.1)
    finally:
        for _ in range(20):
            time.sleep(0.05)  # cleaning up is not disturbed
        print("clean")
    return 0

main.commands = work
main.main([])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("how", DROPPED)
def test_an_interruption_that_python_drops_is_raised_again(number, how):
    code = INTERRUPTED.format(number=int(number), drop=DROPPED[how])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == "laue-dask: interrupted: the same command goes on where it stopped\n"
    assert (done.stdout, done.returncode) == ("clean\n", 1)


INTERRUPTED_BEFORE = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)

class Tells:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), {number})

sys.meta_path.insert(0, Tells())
sys.argv = ["laue-dask", "info", "nowhere"]
from laue_dask.__main__ import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "name", ["laue_dask.commands.main", "pydantic", "click", "laue_dask.pipeline.describe", "safetensors"]
)
def test_an_interruption_before_anything_was_begun_ends_in_a_line(number, name):
    code = INTERRUPTED_BEFORE.format(number=int(number), name=name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        re.sub(r"info: (?:loading libraries|working) .*\n", "", done.stderr)
        == "laue-dask: interrupted: the same command goes on where it stopped\n"
    )


def test_what_fails_after_a_command_has_ended_is_not_told():
    code = "import atexit; from laue_dask.commands import main; main.commands = lambda **_: 0; "
    code += "atexit.register(lambda: 1 / 0); main.main([])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


ACKNOWLEDGED = """
import os, signal, time
from laue_dask.runtime import interruption

interruption.CLEANUP_TIMEOUT_S = 0.5
interruption.exit_at_once()
interruption.acknowledge()
time.sleep(3 * interruption.POLL_INTERVAL_S)
os.write(signal.set_wakeup_fd(-1), bytes([signal.SIGTERM]))
time.sleep(2)
print("goes on", flush=True)
os._exit(0)
"""


def test_notice_of_a_signal_that_comes_after_its_acknowledgement_ends_nothing_by_force():
    done = subprocess.run([sys.executable, "-c", ACKNOWLEDGED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "goes on\n", "")
