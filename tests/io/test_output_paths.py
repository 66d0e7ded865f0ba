import errno
import os
import pickle

import pytest

from laue_dask.errors import ComputeError, DiskFullError, InputError
from laue_dask.io.output_paths import disk_full_error, naming_full_disk, require_space, write_atomically


def test_replace_file_keeps_the_old_content_and_leaves_nothing_behind_when_writing_fails(tmp_path):
    path = tmp_path / "report.html"
    write_atomically(path, b"old")

    def pieces():
        yield "new"
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        write_atomically(path, pieces())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_replace_file_writes_pieces_and_names_that_are_not_utf_8_as_json_does(tmp_path):
    write_atomically(tmp_path / "a.json", iter(['{"é": ', '"scan\udcff\n"}\n']))
    assert (tmp_path / "a.json").read_bytes() == '{"é": "scan\\udcff\n"}\n'.encode()


def test_replace_file_gives_the_file_the_usual_permissions(tmp_path):
    write_atomically(tmp_path / "a", b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_disk_that_is_too_small_is_named_with_both_sizes(tmp_path):
    require_space(tmp_path / "not" / "there", 1)
    with pytest.raises(InputError, match=r"needs 1000000000\.00 GB, the disk at /[^ ]* has [0-9.]+ [GM]B free"):
        require_space(tmp_path / "not" / "there", 10**18)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on the disk at /"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "your quota on the disk at /"),
    ],
    ids=["disk", "quota"],
)
def test_a_full_disk_is_named_with_what_is_free_and_what_is_needed(tmp_path, error, words):
    failed = ComputeError("block 392: OSError")
    failed.__cause__ = error  # as of a task
    with pytest.raises(DiskFullError) as caught, naming_full_disk(tmp_path / "run", needed=lambda: 1_234_000_000):
        raise failed
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'run'}: {words}")
    assert " are free" in text
    assert "), about 1.23 GB more are needed: make room; the same command goes on" in text
    sent = pickle.loads(pickle.dumps(caught.value))  # noqa: S301  our own
    assert (str(sent), sent.place) == (text, str(tmp_path / "run"))


def test_a_file_that_is_named_says_which_disk_it_was(tmp_path):
    with pytest.raises(DiskFullError, match=str(tmp_path / "named")), naming_full_disk(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "named"))


def test_a_file_larger_than_allowed_says_which_limit_to_raise(tmp_path):
    with pytest.raises(DiskFullError, match=r"ulimit -f.*the same command goes on"), naming_full_disk(tmp_path):
        raise OSError(errno.EFBIG, "File too large")


def test_a_disk_that_holds_no_more_files_is_told_from_one_without_room(tmp_path, monkeypatch):
    found = os.statvfs(tmp_path)
    full = os.statvfs_result([*found[:5], 100, 0, 0, *found[8:]])
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    text = str(disk_full_error(OSError(errno.ENOSPC, "No space left on device"), tmp_path))
    assert "holds as many files as it can" in text


def test_other_errors_are_left_as_they_are(tmp_path):
    with pytest.raises(PermissionError), naming_full_disk(tmp_path):
        raise PermissionError(errno.EACCES, "no")
