import re

from hypothesis import given
from hypothesis import strategies as st

from laue_dask.runtime.summary import Summary


@given(st.text(), st.dictionaries(st.text(), st.text(), max_size=3))
def test_no_text_becomes_markup_or_steers_a_terminal(name, facts):
    marked = Summary("Run", f"<b>{name}", {f"<i>{label}": f"<u>{text}" for label, text in facts.items()})
    page = marked.html()
    assert not re.search("<(b|i|u)>", page)
    for text in (page, str(marked)):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)
        assert len(str(marked).split("\n")) == 1 + len(marked.facts)


def test_it_has_no_colours_of_its_own_so_that_light_and_dark_pages_show_it():
    page = Summary("Run", "a", {"K": "6"}, image="data:image/png;base64,AA==").html()
    colours = re.findall(r"(?<!-)(?:background|color)\s*:\s*([^;\"]+)", page)
    assert set(colours) <= {"inherit", "none"}


def test_empty_facts_are_left_out():
    assert str(Summary("Run", "a", {"K": "6", "warnings": ""})).splitlines() == ["Run a", "  K  6"]
    assert "warnings" not in Summary("Run", "a", {"warnings": ""}).html()
