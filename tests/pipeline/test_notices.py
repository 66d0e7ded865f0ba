from laue_dask.pipeline import notices
from laue_dask.pipeline.notices import Notice


def test_what_is_recorded_is_read_again():
    listed = [Notice("frames", "a shard is damaged"), Notice("clustering", "K = 5: left out"), Notice("recipe", "")]
    assert notices.read(notices.recorded(listed)) == listed
    assert notices.read(notices.recorded([])) == notices.read({}) == []


def test_lines_of_the_first_release_get_their_subject_by_their_ends():
    texts = ["K = 9: left out, 12 fall into 3 distinct ones only", "the encoder saw other patterns"]
    found = notices.read({"warnings": texts})
    assert [one.subject for one in found] == ["clustering", "workers"]
    assert [str(one) for one in found] == texts


def test_subjects_that_do_not_fit_the_lines_are_not_believed():
    for subjects in ([], ["frames", "frames"], ["nonsense"]):
        record = {"warnings": ["its labels are provisional"], "warning_subjects": subjects}
        assert notices.read(record) == [Notice("clustering", "its labels are provisional")]
