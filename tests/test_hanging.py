"""A file system that does not answer: a frame costs its deadline, a command that is told to end ends."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

from laue_dask.io.frames import discover

ENDING_S = 5.0
"""Time within which a signal ends a command."""

FRAMES = 6


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    """Environment in which files and folders whose names hold `hung` do not answer."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler, or no Linux")
    library = tmp_path_factory.mktemp("shim") / "hang.so"
    source = Path(__file__).with_name("hang.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl", "-lpthread"], check=True)
    return {**os.environ, "LD_PRELOAD": str(library)}


def pixels(*count):
    return np.random.default_rng(0).poisson(20, (*count, 160, 160)).astype(np.uint16)


def write_frames(folder, names):
    folder.mkdir(parents=True)
    for name in names:
        tifffile.imwrite(folder / name, pixels())


@pytest.fixture
def scans(tmp_path):
    """A folder of frames none of which answers, one that cannot be listed, and a store that does not answer."""
    write_frames(tmp_path / "beamtime" / "scan", [f"hung_{i}.tif" for i in range(FRAMES)])
    write_frames(tmp_path / "hung_folder", ["a_1.tif"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "run" / "hung").write_text("{}")
    (tmp_path / "run" / "run.json").unlink()
    (tmp_path / "run" / "run.json").symlink_to("hung")
    (tmp_path / "nightly.yaml").write_text("find: {quiet_minutes: 0, min_frames: 100}")
    return tmp_path


COMMANDS = [
    ("run beamtime/scan --shape 2 3 --out out", signal.SIGTERM),
    ("run hung_folder --shape 2 3 --out out", signal.SIGINT),
    ("plan beamtime/scan --shape 2 3", signal.SIGINT),
    ("info beamtime/scan", signal.SIGTERM),
    ("ingest beamtime/scan out.zarr --shape 2 3 --workers 1", signal.SIGINT),
    ("watch beamtime/scan --shape 2 3 --out out", signal.SIGINT),
    ("watch hung_folder --shape 2 3 --out out", signal.SIGTERM),
    ("nightly beamtime --config nightly.yaml --out nights", signal.SIGTERM),
    ("verify run", signal.SIGINT),
    ("verify run", signal.SIGTERM),
]


@pytest.mark.parametrize(("command", "number"), COMMANDS, ids=[f"{c.split()[0]}-{n.name}" for c, n in COMMANDS])
def test_a_signal_ends_a_command_that_waits_for_a_dead_file_system(command, number, scans, shim):
    told, typed = scans / "told", [sys.executable, "-m", "laue_dask", *command.split()]
    with subprocess.Popen(
        # Python leaves Ctrl-C alone where it was ignored from the start, as in a shell's background.
        typed, cwd=scans, env={**shim, "HANG_TOLD": str(told)}, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while not told.exists():
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            time.sleep(0.5)
            begun = time.monotonic()
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
            took = time.monotonic() - begun
        finally:
            process.kill()
    assert took < ENDING_S, said
    assert process.returncode == 1, said
    assert said.splitlines()[-1] == "laue-dask: interrupted: the same command goes on where it stopped"


READ = """
import sys
from laue_dask.io import deadline
from laue_dask.io.frames import discover
from laue_dask.io.shards import read_shard
import numpy as np
deadline.set_deadline(1)
refs = discover(sys.argv[1])
try:
    memory = np.empty((len(refs), 160, 160), np.uint16)
    shard = read_shard(refs, np.zeros((160, 160), bool), memory.dtype, memory=memory)
    print(len(refs), [list(one) for one in shard.set_aside], [int(frame.any()) for frame in shard.stack])
except Exception as error:
    print(type(error).__name__, error)
sys.stdout.flush()
import os
os._exit(0)
"""


def read(source, shim):
    """What becomes of frames with a deadline of a second."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(source)], env=shim, capture_output=True, text=True, timeout=120
    )
    return done.stdout.strip() or done.stderr


LATE = "was not read within 1 s (workers.read_deadline)"


def test_a_frame_that_is_not_read_in_time_is_set_aside_and_the_others_are_read(tmp_path, shim):
    write_frames(tmp_path / "scan", ["a_1.tif", "a_2.tif", "hung.tif", "a_4.tif"])
    (tmp_path / "scan" / "hung.tif").rename(tmp_path / "hung.tif")
    (tmp_path / "scan" / "a_3.tif").symlink_to(tmp_path / "hung.tif")
    assert read(tmp_path / "scan", shim) == f"4 {[[2, LATE]]} [1, 1, 0, 1]"


def test_an_hdf5_file_that_is_not_read_in_time_does_not_keep_the_others_waiting(tmp_path, shim):
    (tmp_path / "scan").mkdir()
    for name in ("a_1.h5", "a_2.h5", "a_3.h5", "a_4.h5"):
        with h5py.File(tmp_path / "scan" / name, "w") as file:
            file["entry/data/data"] = pixels()
    (tmp_path / "scan" / "a_3.h5").rename(tmp_path / "hung.h5")
    (tmp_path / "scan" / "a_3.h5").symlink_to(tmp_path / "hung.h5")
    assert read(tmp_path / "scan", shim) == f"4 {[[2, LATE]]} [1, 1, 0, 1]"


def test_an_hdf5_file_that_is_linked_to_and_not_read_in_time_does_not_keep_the_others_waiting(tmp_path, shim):
    for name in ("part.h5", "hung.h5"):
        with h5py.File(tmp_path / name, "w") as file:
            file["data"] = pixels(2)
    with h5py.File(tmp_path / "all.h5", "w") as file:
        layout = h5py.VirtualLayout((4, 160, 160), np.uint16)
        layout[:2] = h5py.VirtualSource("part.h5", "data", (2, 160, 160))
        layout[2:] = h5py.VirtualSource("hung.h5", "data", (2, 160, 160))
        file.create_virtual_dataset("entry/data/data", layout)
    assert len(discover(tmp_path / "all.h5")) == 4
    assert read(tmp_path / "all.h5", shim) == f"4 {[[2, LATE], [3, LATE]]} [1, 1, 0, 0]"


def test_a_file_system_that_answers_no_more_ends_the_work_with_its_name(tmp_path, shim):
    write_frames(tmp_path / "scan", [f"hung_{i}.tif" for i in range(FRAMES)])
    said = read(tmp_path / "scan", shim)
    assert said.startswith(f"ComputeError {tmp_path}/scan/hung_")
    assert ": was not read within 1 s (workers.read_deadline), nor were " in said
    assert ") does not answer: when it does, the same command goes on where it stopped" in said


@pytest.mark.parametrize("suffix", [".tif", ".h5"])
def test_a_frame_whose_disk_reports_an_error_is_set_aside_with_that_reason_and_the_others_are_read(
    tmp_path, shim, suffix
):
    (tmp_path / "scan").mkdir()
    for number in range(1, 5):
        name = tmp_path / "scan" / f"a_{number}{suffix}"
        if suffix == ".tif":
            tifffile.imwrite(name, pixels())
            continue
        with h5py.File(name, "w") as file:
            file["entry/data/data"] = pixels()
    (tmp_path / "scan" / f"a_3{suffix}").rename(tmp_path / f"broken{suffix}")
    (tmp_path / "scan" / f"a_3{suffix}").symlink_to(tmp_path / f"broken{suffix}")
    assert read(tmp_path / "scan", shim) == f"4 {[[2, 'cannot be read: Input/output error']]} [1, 1, 0, 1]"
