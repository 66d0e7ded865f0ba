"""What is unknown is answered with what is near to it."""

from laue_dask.runtime.suggestions import did_you_mean, nearest, nearest_path


def test_nothing_is_proposed_where_nothing_is_near():
    assert nearest("zzz", ["alpha", "beta"]) is None
    assert nearest("alhpa", ["alpha", "beta"]) == "alpha"


def test_a_missing_path_is_answered_with_the_one_beside_it(tmp_path):
    (tmp_path / "scan0001").mkdir()
    assert nearest_path(tmp_path / "scan001") == tmp_path / "scan0001"
    assert did_you_mean(tmp_path / "scan001") == f" (did you mean {tmp_path / 'scan0001'}?)"
    assert did_you_mean(tmp_path / "scan001", other_than=tmp_path / "scan0001") == ""
    assert did_you_mean(tmp_path / "elsewhere") == ""
    assert did_you_mean(tmp_path / "gone" / "scan0001") == ""
