"""Where the home cannot be written, libraries get a private folder."""

import os
import stat

import pytest

from laue_dask.runtime import home_folder


@pytest.fixture
def without_variable(monkeypatch):
    monkeypatch.setenv(home_folder.MATPLOTLIB_FOLDER, "")
    monkeypatch.delenv(home_folder.MATPLOTLIB_FOLDER)


def test_a_home_that_can_be_written_is_left_alone(tmp_path, monkeypatch, without_variable):
    monkeypatch.setenv("HOME", str(tmp_path))
    home_folder.ensure_matplotlib_folder()
    assert home_folder.MATPLOTLIB_FOLDER not in os.environ


def test_without_a_home_matplotlib_gets_a_private_folder(tmp_path, monkeypatch, without_variable):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setattr(home_folder.tempfile, "gettempdir", lambda: str(tmp_path))
    home_folder.ensure_matplotlib_folder()
    assert os.environ[home_folder.MATPLOTLIB_FOLDER] == str(tmp_path / f"laue-dask-{os.getuid()}")


def test_a_folder_that_others_can_write_to_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(home_folder.tempfile, "gettempdir", lambda: str(tmp_path))
    path = home_folder.private_folder()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    path.chmod(0o777)
    assert home_folder.private_folder() is None
    path.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    path.symlink_to(tmp_path / "elsewhere")
    assert home_folder.private_folder() is None
