import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import yaml

from laue_dask import __version__
from laue_dask.commands import demonstration, main
from laue_dask.config import Config, dump, load, validate
from laue_dask.features import weights
from laue_dask.features.architecture import ARCHITECTURES
from laue_dask.features.network import build
from laue_dask.io import results as io_results
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline import record as records
from laue_dask.runtime.progress import QuietProgress
from laue_dask.simulate.detector import DETECTORS
from laue_dask.simulate.scan import write_scan
from laue_dask.simulate.specimens import specimen

COMMANDS = (
    *("demo", "ingest", "plan", "run", "watch", "segment", "nightly", "evaluate", "simulate", "train", "export"),
    *("info", "clean", "verify", "doctor", "config", "completion"),
)
HEAVY = ("torch", "dask_ml", "distributed", "matplotlib", "numba", "sklearn", "zarr", "h5py")


def program(*arguments, **options):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=True, timeout=250, **options
    )


# Help and configuration


def test_help_of_every_command_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from laue_dask.commands import main\n"
        "for name in [[], *([name] for name in main.commands.commands)]:\n"
        "    assert main.exit_code([*name, '--help']) == 0\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)\n"
    )
    done = program("-c", code)
    assert done.stderr.strip() == "[]"
    assert done.stdout.count("Usage: laue-dask") == len(COMMANDS) + 1


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_option(name, capsys):
    assert main.exit_code([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: laue-dask {name}")
    for parameter in main.commands.commands[name].params:
        assert max(parameter.opts, key=len).lower().strip("-") in text.lower().replace("_", "-") or parameter.metavar


def test_commands_are_listed_in_the_order_of_use(capsys):
    assert main.exit_code(["--help"]) == 0
    text = capsys.readouterr().out
    places = [text.index(f"\n  {name} ") for name in COMMANDS]
    assert places == sorted(places)
    assert "0 done" in text


def test_version_is_told(capsys):
    assert main.exit_code(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


def test_printed_configuration_loads_back_as_the_same(capsys, tmp_path):
    assert main.exit_code(["config"]) == 0
    (tmp_path / "all.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert load(tmp_path / "all.yaml") == Config()
    changed = {"recipe": {"clip_sigma": 5.5}, "scan": {"shape": [3, 4], "order": "snake"}, "clustering": {"k": [6, 12]}}
    (tmp_path / "some.yaml").write_text(yaml.safe_dump(changed), encoding="utf-8")
    assert main.exit_code(["config", str(tmp_path / "some.yaml")]) == 0
    (tmp_path / "again.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert load(tmp_path / "again.yaml") == validate(changed, "test")


def test_schema_of_the_configuration_is_json(capsys):
    assert main.exit_code(["config", "--schema"]) == 0
    assert set(json.loads(capsys.readouterr().out)["properties"]) == set(Config.model_fields)


def test_options_win_over_the_configuration(command, small_run, tmp_path):
    store = shutil.copytree(small_run / "scan.zarr", tmp_path / "scan.zarr")
    out, file = tmp_path / "run", tmp_path / "c.yaml"
    text = "encoder: {weights: nowhere.safetensors}\nclustering: {k: [4], score_k: [2, 3], n_init: 2}\nquality: none\n"
    file.write_text(text)
    given = ("--config", file, "--weights", "untrained", "-k", 3, "--components", "0.5", "--substrate", "remove")
    outcome = command("run", store, "--out", out, *given)
    assert outcome.code == 0, outcome.err
    assert outcome.complaints == []
    assert re.search(r"^72 patterns, \d+ components, suggested K: ", outcome.out)
    assert str(out / "report.html") in outcome.out
    found = load(out / "config.yaml")
    assert (found.encoder.weights, found.clustering.k, found.pca.components) == ("untrained", (3,), 0.5)
    assert (found.recipe.substrate, found.clustering.score_k, found.quality) == ("remove", (2, 3), "none")
    # What was reduced without removing the substrate is still there, and is something else.
    kept, removed = (ScanStore.open(store).reduced(recipe.digest()) for recipe in (Config().recipe, found.recipe))
    assert kept[:].any()
    assert removed[:].any()
    assert (kept[:] != removed[:]).any()


# What commands answer


def test_evaluation_of_a_run_that_was_moved_is_printed_kept_and_reported(command, small_run, small_scan, tmp_path):
    moved = shutil.copytree(small_run, tmp_path / "moved")
    record = json.loads((moved / "run.json").read_text())
    records.write(moved, {**record, "scan": str(tmp_path / "gone.zarr")})
    outcome = command("evaluate", moved, "--truth", small_scan / "truth.npz")
    assert outcome.code == 0, outcome.err
    assert outcome.complaints == []
    head, *lines = outcome.out.splitlines()
    assert head.split()[:2] == ["features", "k"]
    assert {"ari", "ari_interior", "homogeneity", "mse", "ks"} <= set(head.split())
    told = json.loads((moved / "run.json").read_text())["evaluation"]
    assert {row["estimator"] for row in told} == {"kmeans"}
    errors = json.loads((moved / "run.json").read_text())["approximation"]
    assert [row["k"] for row in errors] == [2, 4, 6, 8, 12, 16, 24, 32]
    assert (moved / "plots" / "approximation.png").exists()
    assert len(lines) == len(told)
    assert {row["features"] for row in told} >= {"encoder", "untrained", "pixels"}
    page = (moved / "report.html").read_text(encoding="utf-8")
    assert "untrained" in page
    assert "Kolmogorov–Smirnov distance of the map" in page


def test_info_says_what_each_kind_of_path_is(command, small_run, small_scan, tmp_path):
    architecture = ARCHITECTURES["contrastive"]
    card = weights.Card(architecture=architecture, recipe=Config().recipe, metrics={"validation_bce": 0.125})
    weights.save(build(architecture, seed=0), tmp_path / "w.safetensors", card)
    expected = {
        small_run: ("run of", "8 × 9", "72 patterns", "encode"),
        small_run / "scan.zarr": ("scan of 8 × 9", "72 usable", "260 × 245, int32", "% of the pixels"),
        tmp_path / "w.safetensors": ("contrastive", "256 latent", "0.125"),
        small_scan: ("72 frames", "260 × 245, int32", "y = 6000 µm, x = 6000 µm"),
        small_scan / "scan_00072.tif": ("1 frame\n", "y = 6035 µm, x = 6040 µm"),
    }
    for path, texts in expected.items():
        outcome = command("info", path)
        assert outcome.code == 0, outcome.err
        assert not outcome.err
        for text in texts:
            assert text in outcome.out


@pytest.mark.usefixtures("on_workers")
def test_demonstration_shows_maps_and_figures(tmp_path, quick):
    text = demonstration.demonstrate(
        tmp_path / "demo", shape=(5, 6), seed=7, config=quick(clustering={"k": (6,)}), progress=QuietProgress()
    )
    assert "30 simulated patterns" in text
    assert "ari_interior" in text
    for name in ("run/report.html", "run/plots", "run/results.zarr"):
        assert str(tmp_path / "demo" / name) in text
        assert (tmp_path / "demo" / name).exists()


def test_own_defect_is_one_line_and_a_file_with_the_details(command, monkeypatch, tmp_path):
    from laue_dask.pipeline import describe

    def broken(path):
        raise ZeroDivisionError("one\nover none")

    monkeypatch.setattr(describe, "describe", broken)
    outcome = command("info", tmp_path)
    assert outcome.code == 1
    [line] = outcome.complaints
    found = re.search(r"ZeroDivisionError: one over none \(a defect; the details are in (.+)\)", line)
    log = found[1]
    with open(log, encoding="utf-8") as file:  # noqa: PTH123
        assert "Traceback" in file.read()
    os.unlink(log)  # noqa: PTH108


@pytest.mark.parametrize(("name", "said"), [("h5py.h5", "package h5py is missing"), ("laue_dask.gone", "a defect")])
def test_a_package_that_is_missing_is_named_and_one_of_ours_is_a_defect(command, monkeypatch, tmp_path, name, said):
    from laue_dask.pipeline import describe

    def broken(path):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(describe, "describe", broken)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    outcome = command("info", tmp_path)
    assert outcome.code == 1
    [line] = outcome.complaints
    assert said in line


def test_interruption_says_that_the_same_command_goes_on(command, monkeypatch, tmp_path):
    from laue_dask.pipeline import describe

    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(describe, "describe", interrupted)
    outcome = command("info", tmp_path)
    assert outcome.code == 1
    assert outcome.err.strip() == "laue-dask: interrupted: the same command goes on where it stopped"


# Quality


def test_grains_of_a_simulated_scan_are_found_beside_the_baselines(command, tmp_path):
    frames = tmp_path / "frames"
    write_scan(specimen("grains", (16, 16), 5), DETECTORS["pilatus1m"].binned(4), frames, seed=2)
    grains = len(np.unique(np.load(frames / "truth.npz")["domain"]))
    outcome = command("run", frames, "--out", tmp_path / "run", "-k", grains)
    assert outcome.code == 0, outcome.err
    outcome = command("evaluate", tmp_path / "run", "--truth", frames / "truth.npz")
    assert outcome.code == 0, outcome.err
    rows = json.loads((tmp_path / "run" / "run.json").read_text())["evaluation"]
    interior = {row["features"]: row["ari_interior"] for row in rows if row["k"] == grains}
    assert {"encoder", "untrained", "pixels"} <= set(interior)
    assert interior["encoder"] >= 0.9
    assert interior["encoder"] >= interior["pixels"] - 0.02


# Killed at any moment


def children(pid):
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def killed(arguments, stage, delay):
    """Start the program and kill it some time after it told of a stage; whether it was still running."""
    with subprocess.Popen(
        [sys.executable, "-m", "laue_dask", *map(str, arguments)], stderr=subprocess.PIPE, text=True
    ) as process:
        told = iter(process.stderr.readline, "")
        reached = any(line.startswith(stage) for line in told)
        time.sleep(delay)
        workers = children(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive, "workers outlived their driver"
    return reached


def test_run_killed_again_and_again_ends_with_the_same_bits(small_scan, small_run, tmp_path, quick):
    out, file = tmp_path / "run", tmp_path / "c.yaml"
    file.write_text(dump(quick(workers={"count": 1})))
    arguments = ["run", small_scan, "--out", out, "--config", file]
    rng = np.random.default_rng()
    for stage in ("ingest, reduce and encode", "scores"):
        delay = float(rng.uniform(0, 0.6))
        assert killed(arguments, stage, delay), (stage, delay)
        while (out / "results.zarr").exists() and delay > 0.01:  # on a fast machine its results were there by then
            shutil.rmtree(out)
            delay /= 2
            assert killed(arguments, stage, delay), (stage, delay)
        assert not (out / "run.json").exists()
        assert not (out / "results.zarr").exists()
    done = program("-m", "laue_dask", *arguments)
    assert "a defect" not in done.stderr
    assert not list(out.glob("*.part"))
    with io_results.read(out) as ours, io_results.read(small_run) as theirs:
        for name in set(ours.variables) - {"reconstruction_error", "unexplained"}:
            assert ours[name].values.tobytes() == theirs[name].values.tobytes(), name


def test_a_command_that_is_told_to_end_twice_ends_in_order(small_scan, tmp_path):
    """Batch systems say it to the job and to its script; the second signal is not to end what the first one began."""
    command = [sys.executable, "-m", "laue_dask", "run", str(small_scan), "--out", str(tmp_path / "run")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert any(line.startswith("ingest, reduce and encode") for line in iter(process.stderr.readline, ""))
        workers = children(process.pid)
        for _ in range(6):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        told = process.communicate(timeout=100)[1].splitlines()
    assert process.returncode == 1
    assert told[-1] == "laue-dask: interrupted: the same command goes on where it stopped"
    assert not psutil.wait_procs(workers, timeout=60)[1]
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_run_that_a_terminal_interrupts_while_it_imports_ends_in_a_line(small_scan, tmp_path):
    command = [sys.executable, "-m", "laue_dask", "run", str(small_scan), "--out", str(tmp_path / "run")]

    def heard():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # who started these tests, such as `nohup`, may have it ignored

    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heard
    ) as process:
        deadline = time.monotonic() + 60
        while not any("forkserver" in " ".join(one.cmdline()) for one in children(process.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)
        begun = [one for one in children(process.pid) if "forkserver" in " ".join(one.cmdline())]
        os.killpg(process.pid, signal.SIGINT)
        told = process.communicate(timeout=100)[1].splitlines()
        left = [one for one in begun if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert begun
    assert not left  # it would go on importing, for seconds
    assert process.returncode == 1
    assert [line for line in told if line] == ["laue-dask: interrupted: the same command goes on where it stopped"]


def test_an_error_while_an_interruption_is_cleaned_up_is_no_error(monkeypatch, capsys):
    def work(**_):
        try:
            raise KeyboardInterrupt
        finally:
            raise AssertionError("half of a cluster")

    monkeypatch.setattr(main, "commands", work)
    assert main.exit_code([]) == 1
    assert capsys.readouterr().err == "laue-dask: interrupted: the same command goes on where it stopped\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_command_whose_output_nobody_wants_is_done_all_the_same(closed):
    done = subprocess.run(f"{sys.executable} -m laue_dask config {closed}", shell=True, check=False)  # noqa: S602
    assert done.returncode == 0


@pytest.mark.parametrize("source", ["scanA", "scanA/*.tif", "scanA/*.h5::/entry/data", "scanA::/entry/data"])
def test_the_folder_of_a_watch_is_called_after_that_of_its_scan(tmp_path, monkeypatch, command, source):
    from laue_dask.watch import watcher

    places = []

    def watch(folder, out, config, *, stop, **_):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)  # said twice: it is stopped once
        places.append((out, stop.is_set()))
        raise KeyboardInterrupt

    monkeypatch.setattr(watcher, "watch", watch)
    before = signal.getsignal(signal.SIGTERM)
    command("watch", tmp_path / source)
    assert [(str(out), stopped) for out, stopped in places] == [("scanA_run", True)]
    assert signal.getsignal(signal.SIGTERM) is before
