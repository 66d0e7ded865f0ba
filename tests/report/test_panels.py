import numpy as np
import pytest

from laue_dask.report import maps
from laue_dask.report.canvas import cluster_colours
from laue_dask.report.panels import Panel, panel_figure


@pytest.fixture
def labels():
    return np.array([[0, 0, 1], [2, -1, 1]], np.int32)


def test_every_kind_of_map_is_drawn_with_its_own_colours(labels):
    angle = np.array([[1.0, 2.0, np.nan], [3.0, 5.0, 4.0]])
    rgb = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    panels = [Panel("K = 3", labels, 3, np.array([1, -1, 3])), Panel("colours", rgb), Panel("true", angle)]
    figure = panel_figure([*panels, Panel("half", angle / 2)], title="T", facts="f", columns=2, bar="angle (deg)")
    natural, colours, true, half, bar = figure.axes
    assert [axes.get_title(loc="left") for axes in (natural, colours, true, half)] == [
        "K = 3",
        "colours",
        "true",
        "half",
    ]
    shown = natural.images[0]
    assert shown.get_array().mask.tolist() == [[False] * 3, [False, True, False]]
    assert [tuple(shown.to_rgba(i)) for i in range(3)] == [cluster_colours(3)(i) for i in range(3)]
    np.testing.assert_array_equal(colours.images[0].get_array(), rgb)
    # one scale for all properties, or they could not be compared
    assert true.images[0].get_clim() == half.images[0].get_clim() == (0.5, 5.0)
    assert bar.get_ylabel() == "angle (deg)"
    assert natural.collections[0].get_offsets().tolist() == [[1, 0], [0, 1]]
    assert not colours.collections


@pytest.mark.parametrize("shape", [(30, 30), (60, 100), (30, 100), (21, 51)])
@pytest.mark.parametrize("count", [1, 4, 9])
def test_panels_do_not_overlap_and_keep_the_scan_s_proportions(shape, count):
    panels = [Panel(str(i), np.zeros(shape)) for i in range(count)]
    figure = panel_figure(panels, title="T", facts="f", columns=3)
    boxes = [axes.get_position().bounds for axes in figure.axes]
    width, height = figure.get_size_inches()
    for x, y, w, h in boxes:
        assert min(x, y) >= 0
        assert max(x + w, y + h) <= 1
    for x, y, w, h in boxes[:count]:
        assert h * height / (w * width) == pytest.approx(shape[0] / shape[1])
        assert sum(abs(x - a) < min(w, c) - 1e-9 and abs(y - b) < min(h, d) - 1e-9 for a, b, c, d in boxes[:count]) == 1


def test_maps_without_any_value_can_be_drawn():
    figure = panel_figure([Panel("none", np.full((3, 3), np.nan))], title="T", facts="f", columns=1)
    assert figure.axes[0].images[0].get_array().mask.all()


def test_colour_scheme_has_the_three_components():
    figure = maps.colour_scheme()
    written = [text.get_text() for text in figure.axes[0].texts]
    assert written[:3] == ["x₁", "x₂", "x₃"]
