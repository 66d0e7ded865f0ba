import base64
import re
from html.parser import HTMLParser

import pytest

from laue_dask.report import page
from laue_dask.report.page import write_page

PNG = b"\x89PNG\r\n\x1a\n"
VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Reads a page strictly: every element must be closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts, self.cells, self.tables = [], [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


@pytest.fixture
def written(tmp_path, results):
    """Writes a page and reads it back."""

    def write(run, *, dataset=results, plots=()):
        path = tmp_path / "report.html"
        write_page(dataset, list(plots), run, path)
        reader = Reader()
        reader.feed(path.read_text(encoding="utf-8"))
        reader.close()
        assert reader.open == []
        return reader

    return write


@pytest.fixture
def figure(tmp_path):
    """Makes a file that passes for a figure."""

    def make(stem):
        path = tmp_path / f"{stem}.png"
        path.write_bytes(PNG + stem.encode())
        return path

    return make


def embedded(reader):
    sources = [value for name, value in reader.attributes if name == "src"]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    return [base64.b64decode(source.split(",")[1]).removeprefix(PNG).decode() for source in sources]


def titles(reader):
    return [value for name, value in reader.attributes if name == "id"]


def table_with(reader, column):
    (table,) = [table for table in reader.tables if column in table[0]]
    return table


def test_every_plot_is_embedded_once_direct_colouring_first_and_maps_by_k(written, figure):
    stems = [
        "scores",
        "labels_k12",
        "labels_k06",
        "explained_variance",
        "something_new",
        "pca_k06",
        "reconstruction_error",
        "direct_colouring",
    ]
    assert embedded(written({}, plots=[figure(stem) for stem in stems])) == [
        "direct_colouring",
        "labels_k06",
        "pca_k06",
        "labels_k12",
        "scores",
        "explained_variance",
        "reconstruction_error",
        "something_new",
    ]


def test_nothing_is_loaded_from_elsewhere(written, figure):
    reader = written({"source": "https://example.org/scan"}, plots=[figure("scores")])
    assert not {"script", "link", "iframe", "object"} & set(reader.tags)
    links = [value for name, value in reader.attributes if name in ("href", "src")]
    assert all(value.startswith(("#", "data:")) for value in links)
    assert ("default-src 'none'; img-src data:; style-src 'unsafe-inline'") in [v for _, v in reader.attributes]


def test_links_of_the_page_lead_to_its_sections(written, figure):
    reader = written({"set_aside": [{"pattern": 3, "reason": "truncated"}]}, plots=[figure("scores")])
    links = [value.removeprefix("#") for name, value in reader.attributes if name == "href"]
    assert links == titles(reader) == ["scores", "delegates", "patterns-set-aside"]


HOSTILE = '<script>alert("1")</script>&${title}'


@pytest.mark.parametrize(
    "run",
    [
        {"source": HOSTILE},
        {"command": HOSTILE},
        {"workers": HOSTILE},
        {"set_aside": [{"pattern": 0, "source": HOSTILE, "reason": HOSTILE}]},
        {"evaluation": [{HOSTILE: HOSTILE}]},
        {"delegate_sources": {"0": HOSTILE}},
        {"versions": {HOSTILE: HOSTILE}},
        {"seeds": {HOSTILE: HOSTILE}},
        {"config": {HOSTILE: {"weights": HOSTILE}}},
        {"keys": {"features": HOSTILE}},
        {"seconds": {HOSTILE: 1.0}},
    ],
    ids=lambda run: next(iter(run)),
)
def test_text_is_escaped_wherever_it_comes_from(written, run):
    reader = written(run)
    assert "script" not in reader.tags
    assert any(HOSTILE in text for text in reader.texts)


def test_a_hostile_figure_name_is_escaped(written, figure):
    reader = written({}, plots=[figure('"onerror="alert(1)')])
    assert "onerror" not in dict(reader.attributes)
    assert len(embedded(reader)) == 1


def test_headline_facts_come_from_the_run_and_the_results(written):
    run = {"scan_shape": [12, 20], "n_patterns": 5986, "n_set_aside": 14, "seconds": {"encode": 100.0, "scores": 25.0}}
    text = " ".join(written(run).texts)
    for fact in ("12 × 20", "5,986", "14", "3, 6", "2 min 05 s"):
        assert fact in text
    assert re.search(r"5, explaining \d\d\.\d\d %", text)


def test_delegates_are_listed_with_position_file_size_and_distance(written, results):
    index = results["delegate"].sel(k=6).values
    reader = written({"delegate_sources": {str(i): f"scan_{i:05d}.tif" for i in index}})
    tables = [table for table in reader.tables if "cluster" in table[0]]
    assert [len(table) - 1 for table in tables] == [3, 6]
    assert tables[1][0] == [
        "K",
        "cluster",
        "pattern",
        "x",
        "y",
        "source file",
        "size",
        "share (%)",
        "distance to centroid",
    ]
    labels = results["labels"].sel(k=6).values
    y, x = divmod(int(index[4]), 20)
    size = int((labels == 4).sum())
    distance = float(results["distance_to_centroid"].sel(k=6)[y, x])
    share = f"{round(100 * size / 238, 2):#.4g}"
    assert tables[1][5] == [
        "6",
        "4",
        str(index[4]),
        str(x),
        str(y),
        f"scan_{index[4]:05d}.tif",
        str(size),
        share,
        f"{distance:#.4g}",
    ]


def test_without_files_of_delegates_their_column_is_left_out(written):
    assert not any("source file" in table[0] for table in written({}).tables)


def test_patterns_set_aside_are_listed_with_reasons(written):
    aside = [{"pattern": 17, "source": "scan_00017.tif", "reason": "truncated: 3 of 4 bytes"}]
    table = table_with(written({"set_aside": aside, "n_set_aside": 1}), "reason")
    assert table == [["pattern", "source", "reason"], ["17", "scan_00017.tif", "truncated: 3 of 4 bytes"]]


def test_a_long_list_is_cut_and_says_so(written):
    aside = [{"pattern": i, "reason": "empty"} for i in range(page.MAX_TABLE_ROWS + 44)]
    reader = written({"set_aside": aside, "n_set_aside": 4000})
    assert len(table_with(reader, "reason")) == 1 + page.MAX_TABLE_ROWS
    assert f"the first {page.MAX_TABLE_ROWS} of 4,000" in reader.texts


def test_evaluation_is_shown_where_there_is_one(written):
    rows = [{"features": "encoder", "k": 6, "ari": 0.91234}, {"features": "pixels", "k": 6, "mse": float("nan")}]
    table = table_with(written({"evaluation": rows}), "ari")
    assert table == [["features", "k", "ari", "mse"], ["encoder", "6", "0.9123", ""], ["pixels", "6", "", "–"]]
    assert "evaluation" not in titles(written({}))


def test_times_are_given_by_stage_with_rates_where_known(written):
    run = {"seconds": {"encode": 14.5, "scores": 6.0}, "patterns_per_second": {"encode": 413.8}}
    assert table_with(written(run), "stage") == [
        ["stage", "time", "patterns/s"],
        ["encode", "14.5 s", "414"],
        ["scores", "6.0 s", ""],
    ]


def test_versions_seeds_and_configuration_come_last(written):
    run = {
        "laue_dask": "0.1.0",
        "versions": {"dask": "2026.8.0"},
        "seeds": {"clustering": 7},
        "config": {"pca": {"m": 3}},
    }
    reader = written(run)
    assert titles(reader)[-1] == "versions-and-seeds"
    assert table_with(reader, "package") == [["package", "version"], ["laue_dask", "0.1.0"], ["dask", "2026.8.0"]]
    assert "Seeds: clustering 7" in reader.texts
    assert "pca:\n  m: 3" in reader.texts


@pytest.mark.parametrize(
    "absent", ["components", "explained_variance_ratio", "labels", "delegate", "distance_to_centroid", "silhouette"]
)
def test_absent_variables_are_fine(written, results, absent):
    assert written({}, dataset=results.drop_vars(absent)).tags


def test_an_empty_run_has_a_page(written, results):
    reader = written({}, dataset=results.drop_vars(list(results.variables)))
    assert "Laue scan" in reader.texts
    assert titles(reader) == []


def test_a_page_that_cannot_be_made_leaves_the_old_one(tmp_path, results):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(FileNotFoundError):
        write_page(results, [tmp_path / "absent.png"], {}, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
