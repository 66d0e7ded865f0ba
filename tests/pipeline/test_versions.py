from laue_dask.pipeline import versions


def test_code_is_named_like_the_first_release_until_a_stage_changes(monkeypatch):
    monkeypatch.setattr(versions, "STAGE_VERSIONS", {"reduced": 1, "scores": 3})
    assert versions.version_of_code() == "0.1.0"
    monkeypatch.setattr(versions, "STAGE_VERSIONS", {"reduced": 2, "scores": 3, "peaks": 1})
    assert versions.version_of_code() == "0.1.0 peaks 1 reduced 2"
