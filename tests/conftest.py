"""Fixtures shared by all tests."""

import logging
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from laue_dask.commands import main
from laue_dask.compute import cluster
from laue_dask.compute.cluster import Workers, start
from laue_dask.config import Config, LocalWorkersConfig, validate
from laue_dask.runtime.progress import QuietProgress

REPOSITORY = Path(__file__).parent.parent

# No test depends on timing: a busy machine is no failure. CI tries the same examples each time; elsewhere they are new.
settings.register_profile(
    "untimed", derandomize="CI" in os.environ, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("untimed")


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="session")
def make_clock() -> Callable[[], Clock]:
    """Makes clocks that stand still, for tests that need more than one."""
    return Clock


@pytest.fixture
def clock(make_clock: Callable[[], Clock]) -> Clock:
    """A clock that stands still."""
    return make_clock()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of published real data, used in place; the test is skipped where it is absent."""
    folder = Path(os.environ.get("LAUE_DASK_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "frames").is_dir():
        pytest.skip(f"real data not found: no folder {folder / 'frames'} (set LAUE_DASK_DATA)")
    return folder


@pytest.fixture(scope="session")
def straddled() -> Callable[..., NDArray[np.int32]]:
    """Makes frames (n, 512, 512) of two crystals beside each other in the beam, with so many counts in each."""

    def made(counts: Iterable[tuple[float, float]], seed: int = 0) -> NDArray[np.int32]:
        side, spots = 512, 60
        rng = np.random.default_rng(seed)
        row, column = np.divmod(rng.permutation((side // 8) ** 2)[:spots], side // 8)
        strength = rng.lognormal(0, 1, spots)
        found = []
        for pair in counts:
            frame = np.full((side, side), 20.0)
            for crystal, total in enumerate(pair):
                mine = slice(crystal, None, 2)
                frame[8 * row[mine] + 2, 8 * column[mine] + 2] += total * strength[mine]
            found.append(rng.poisson(gaussian_filter(frame, 0.8)))
        return np.asarray(found, np.int32)

    return made


@pytest.fixture(scope="session")
def workers() -> Iterator[Workers]:
    """Two CPU workers, started once for all tests that need them."""
    with start(LocalWorkersConfig(count=2, gpu="never")) as running:
        yield running


@contextmanager
def _all_on(workers: Workers) -> Iterator[None]:
    """Whatever would start workers gets those that are running."""

    @contextmanager
    def running(config: LocalWorkersConfig, **_: object) -> Iterator[Workers]:
        yield workers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "start", running)
        yield


@pytest.fixture
def on_workers(workers: Workers) -> Iterator[Workers]:
    """Commands and the pipeline run on the session's workers, not on their own."""
    with _all_on(workers):
        yield workers


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands and the pipeline run on one worker that is a thread of this process: what it calls can be replaced."""

    @contextmanager
    def running(config: LocalWorkersConfig, **_: object) -> Iterator[Workers]:
        with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as client:
            yield Workers(client=client, count=1, gpu=None, described="here")

    monkeypatch.setattr(cluster, "start", running)


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        """Lines on stderr that neither tell progress nor list what was set aside."""
        told = re.compile(r"[a-z, ]+: ([\d,]+ |stopped after )|set aside: ")
        return [line for line in self.err.splitlines() if not told.match(line)]


@pytest.fixture(autouse=True)
def _logging_reaches_tests(caplog: pytest.LogCaptureFixture) -> None:
    # A command line that ran in this process keeps the package's messages to itself; a cluster silences all handlers.
    logging.getLogger("laue_dask").propagate = True
    caplog.handler.setLevel(logging.NOTSET)


@pytest.fixture
def command(on_workers: Workers, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a `laue-dask` command in this process."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main.exit_code([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of a real SLURM of one node, which runs while tests need it; they are skipped where it cannot be had."""
    if os.name != "posix" or os.geteuid():
        pytest.skip("a SLURM of one node is started by root alone")
    if shutil.which("sbatch") is None and shutil.which("apt-get"):
        for arguments in (["update"], ["install", "-y", "--no-install-recommends", "slurm-wlm", "munge"]):
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            subprocess.run(["apt-get", "-qq", *arguments], env=environment, capture_output=True, check=False)
    if shutil.which("sbatch") is None:
        pytest.skip("SLURM is not installed, and Debian's packages slurm-wlm and munge cannot be")
    script, folder = REPOSITORY / "scripts" / "one_node_slurm", tmp_path_factory.mktemp("one-node")
    started = subprocess.run([script, "start", folder], capture_output=True, text=True, check=False)
    try:
        if started.returncode:
            pytest.skip(f"SLURM does not start here: {started.stderr.strip()}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
            yield folder
    finally:
        subprocess.run([script, "stop", folder], capture_output=True, check=False)


@pytest.fixture(scope="session")
def quick() -> Callable[..., Config]:
    """Configuration of a run that takes seconds; keywords are sections."""

    def config(**sections: dict[str, object] | str) -> Config:
        clustering = {"score_k": (2, 4), "n_init": 2, "k": (3,), **dict(sections.pop("clustering", {}))}
        encoder = {"weights": "untrained", **dict(sections.pop("encoder", {}))}
        return validate({"clustering": clustering, "encoder": encoder, "quality": "none", **sections}, "test")

    return config


@pytest.fixture(scope="session")
def small_scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 8 × 9 frames of a specimen of three grains, with truth.npz; 260 × 245 pixels."""
    from laue_dask.simulate.detector import DETECTORS
    from laue_dask.simulate.scan import write_scan
    from laue_dask.simulate.specimens import specimen

    folder = tmp_path_factory.mktemp("small") / "frames"
    write_scan(specimen("grains", (8, 9), 3), DETECTORS["pilatus1m"].binned(4), folder, seed=1)
    return folder


@pytest.fixture(scope="session")
def small_run(small_scan: Path, quick: Callable[..., Config], workers: Workers) -> Path:
    """Finished run of `small_scan`; not to be changed."""
    from laue_dask.pipeline import single_scan

    folder = small_scan.parent / "run"
    with _all_on(workers):
        single_scan.run(str(small_scan), folder, quick(quality="all"), command="test", progress=QuietProgress())
    return folder
