import pytest

from laue_dask.compute.run import begin_tasks
from laue_dask.io import results as io_results
from laue_dask.io.scan_store import ScanStore
from laue_dask.pipeline.stages import drawing
from laue_dask.pipeline.stages.drawing import FigureData


@pytest.fixture
def finished(small_run):
    """Folder, reduced patterns and material of a run."""
    store = ScanStore.open(small_run / "scan.zarr")
    [recipe] = store.recipes()
    reduced = store.reduced(recipe)
    return small_run, reduced, FigureData.of(small_run, reduced)


def test_workers_draw_what_this_process_would(finished, workers, tmp_path):
    folder, reduced, material = finished
    wanted = {path.stem: path.read_bytes() for path in (folder / "plots").glob("*.png")}
    copy = tmp_path / "run"
    copy.mkdir()
    (copy / io_results.RESULTS_STORE).symlink_to(folder / io_results.RESULTS_STORE)
    names = drawing.drawn(drawing.begin(copy, reduced, material, workers=workers))
    assert sorted(names) == sorted(wanted)
    assert {path.stem: path.read_bytes() for path in (copy / "plots").glob("*.png")} == wanted


def test_large_results_are_left_to_this_process(finished, workers, monkeypatch):
    folder, reduced, material = finished
    monkeypatch.setattr(drawing, "MAX_PARALLEL_DRAWING_BYTES", material.results.nbytes - 1)
    assert drawing.begin(folder, reduced, material, workers=workers) == {}


def test_what_workers_failed_to_draw_is_drawn_here(finished, workers, tmp_path):
    folder, _, material = finished

    def fail(part):
        raise RuntimeError("no font")

    names = drawing.drawn(begin_tasks(fail, range(2), (), client=workers.client))
    assert names == []
    drawing.draw(tmp_path, {"source": "here"}, material, drawn=names)
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        path.name for path in (folder / "plots").iterdir()
    }
    assert (tmp_path / "report.html").is_file()


def test_what_workers_have_drawn_is_not_drawn_again(finished, tmp_path):
    folder, _, material = finished
    other = (folder / "plots" / "scores.png").read_bytes()
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "direct_colouring.png").write_bytes(other)
    drawing.draw(tmp_path, {}, material, drawn=["direct_colouring", "scores"])
    assert (tmp_path / "plots" / "direct_colouring.png").read_bytes() == other
    assert (tmp_path / "plots" / "scores.png").read_bytes() == other  # it was not there, whatever was said
