"""What others wrote cannot execute anything, cannot fill the memory, and cannot make us write elsewhere."""

import ast
import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

import laue_dask
from laue_dask.config import load
from laue_dask.errors import ConfigError, FrameError, InputError, StoreError
from laue_dask.features import network, weights
from laue_dask.features.architecture import Architecture
from laue_dask.io.frames import FrameRef, read_frame
from laue_dask.io.receipts import Receipts
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline import single_scan
from laue_dask.pipeline.stages.evaluation import read_truth
from laue_dask.pipeline.verify import verify
from laue_dask.runtime.progress import QuietProgress

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import fuzz

SOURCES = sorted(Path(laue_dask.__file__).parent.rglob("*.py"))
FORBIDDEN = {"pickle", "cloudpickle", "marshal", "shelve", "joblib", "dill"}
EXECUTING = {"eval", "exec", "compile", "__import__"}


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(SOURCES[0].parent)))
def test_nothing_is_unpickled_and_nothing_executed(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in FORBIDDEN
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in EXECUTING
            assert not name.startswith(("os.system", "os.popen")), name
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert keywords.get("shell", "False") == "False", name
            if name in ("np.load", "numpy.load"):
                assert keywords.get("allow_pickle") == "False"
            if name == "torch.load":
                assert keywords.get("weights_only") == "True"
            if name == "yaml.load":
                assert keywords.get("Loader") == "_Loader"
            assert name not in ("yaml.unsafe_load", "yaml.full_load")


def test_a_truth_of_pickled_objects_is_refused(tmp_path):
    np.savez(tmp_path / "t.npz", domain=np.array([[Bomb(tmp_path / "mark")]], dtype=object))
    with pytest.raises(InputError, match=r"not an \.npz file of plain numerical arrays"):
        read_truth(tmp_path / "t.npz", (1, 1))
    assert not (tmp_path / "mark").exists()


def test_weights_that_are_a_pickle_are_refused(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    with pytest.raises(StoreError):
        weights.load(str(tmp_path / "w.safetensors"))
    assert not (tmp_path / "mark").exists()


def test_weights_of_absurd_size_take_no_memory(tmp_path):
    content = weights.DEFAULT_WEIGHTS_FILE.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = next(key for key in header if key != "__metadata__")
    header[name]["shape"] = [2**20, 2**20, 2**10]
    packed = json.dumps(header).encode()
    (tmp_path / "w.safetensors").write_bytes(len(packed).to_bytes(8, "little") + packed + content[8 + length :])
    with pytest.raises(StoreError):
        weights.load(str(tmp_path / "w.safetensors"))


def test_a_card_that_declares_more_than_memory_is_refused_before_any_is_taken(tmp_path, monkeypatch):
    card = weights.read_card(weights.DEFAULT_WEIGHTS_FILE)
    absurd = Architecture(channels=(4096,) * 7, latent=65536)  # 20 GB
    state = weights.load("default")[0].state_dict()
    (tmp_path / "w.safetensors").write_bytes(weights._packed(state, card.model_copy(update={"architecture": absurd})))

    def forbidden(*args, **kwargs):
        raise AssertionError("memory was taken")

    monkeypatch.setattr(network, "build", forbidden)
    with pytest.raises(StoreError, match="do not fit the architecture of the card"):
        weights.load(str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("name", ["/etc/hostname", "../outside", "source/../../outside"])
def test_receipts_that_name_files_elsewhere_are_refused(small_run, tmp_path, name):
    store = shutil.copytree(small_run / "scan.zarr", tmp_path / "s.zarr")
    (tmp_path / "outside").write_text("not ours")
    receipts = Receipts.read(store)
    Receipts(store, {**receipts.files, name: (8, 0)}).write()
    with pytest.raises(StoreError, match="which is not in"):
        ScanStore.open(store)
    found = verify(store, progress=QuietProgress())
    assert any("which is not in" in one.fault for one in found.findings)


@pytest.mark.parametrize("name", ["reduced", "receipts"])
@pytest.mark.usefixtures("on_workers")
def test_links_in_a_store_lead_no_write_elsewhere(small_run, tmp_path, quick, name):
    store, outside = shutil.copytree(small_run / "scan.zarr", tmp_path / "s.zarr"), tmp_path / "outside"
    (store / name).rename(outside)
    (store / name).symlink_to(outside)
    before = {path: path.stat().st_mtime_ns for path in outside.rglob("*")}
    config = quick(recipe={"clip_sigma": 5.0})
    with pytest.raises(StoreError, match=f"{name} is a link to another place"):
        single_scan.run(str(store), tmp_path / "run", config, command="test", progress=QuietProgress())
    assert {path: path.stat().st_mtime_ns for path in outside.rglob("*")} == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.mkdir [{mark}]", "could not determine a constructor"),
        ("a: !!python/name:os.mkdir", "could not determine a constructor"),
        ("a: &a [1]\nb: *a", "aliases"),
        ("quality: all\nquality: none", "key 'quality' is given twice"),
    ],
)
def test_a_configuration_executes_nothing_and_loses_nothing(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text.format(mark=tmp_path / "mark"))
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path / "c.yaml")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "mark").exists()


def test_a_few_aliases_do_not_become_a_billion_values(tmp_path):
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    (tmp_path / "c.yaml").write_text("\n".join([*lines, "clustering: {k: *a9}"]))
    with pytest.raises(ConfigError, match="aliases"):
        load(tmp_path / "c.yaml")


def test_a_hdf5_file_that_declares_more_than_memory_is_set_aside(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", shape=(2, 2**21, 2**21), dtype="f8", chunks=(1, 64, 64))
    with pytest.raises(FrameError):
        read_frame(FrameRef(str(tmp_path / "a.h5"), "data", 0))


def test_a_tiff_that_declares_more_than_memory_is_set_aside(tmp_path):
    tags = [(256, 2**31), (257, 2**31), (258, 16), (259, 8), (273, 8), (277, 1), (278, 2**31), (279, 8)]
    entries = b"".join(
        tag.to_bytes(2, "little") + (4).to_bytes(2, "little") + (1).to_bytes(4, "little") + value.to_bytes(4, "little")
        for tag, value in tags
    )
    head = b"II*\0" + (16).to_bytes(4, "little") + b"12345678" + len(tags).to_bytes(2, "little")
    (tmp_path / "a.tif").write_bytes(head + entries + bytes(4))
    with pytest.raises(FrameError):
        read_frame(FrameRef(str(tmp_path / "a.tif")))


def test_a_store_that_declares_more_than_memory_is_refused(tmp_path):
    folder = tmp_path / "s.zarr"
    fuzz._store(folder)
    for name in ("valid", "position", "detector_mask"):
        described = json.loads((folder / name / "zarr.json").read_text())
        described["shape"] = [2**40 if size > 2 else size for size in described["shape"]]
        described["chunk_grid"]["configuration"]["chunk_shape"] = described["shape"]
        (folder / name / "zarr.json").write_text(json.dumps(described))
    known = Receipts.read(folder)
    changed = [f"{name}/zarr.json" for name in ("valid", "position", "detector_mask")]
    known.joined(Receipts.of(folder, changed)).write()
    with pytest.raises(StoreError, match="array 'valid' has the shape"):
        ScanStore.open(folder)


def test_objects_in_a_store_are_not_unpickled(tmp_path):
    """Zarr v3 has no codec that would, and version 2, which had one, is not read."""
    group = zarr.open_group(str(tmp_path / "s.zarr"), mode="w", zarr_format=2)
    group.attrs["laue_dask_schema"] = 1
    folder = tmp_path / "s.zarr" / "valid"
    folder.mkdir()
    about = {"chunks": [1], "compressor": None, "dtype": "|O", "fill_value": None, "filters": [{"id": "pickle"}]}
    (folder / ".zarray").write_text(json.dumps({**about, "order": "C", "shape": [1], "zarr_format": 2}))
    (folder / "0").write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    with pytest.raises(StoreError):
        ScanStore.open(tmp_path / "s.zarr")
    assert not (tmp_path / "mark").exists()
