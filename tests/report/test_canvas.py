import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from laue_dask.io.coordinates import COUNTED, Coordinate, MapScale
from laue_dask.report import canvas

# Machado, Oliveira and Fernandes (2009), severity 1, in linear RGB
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}


def lab(colours, vision):
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ VISION[vision].T, 0, 1)
    xyz = seen @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
    f = xyz / [0.9505, 1.0, 1.089]
    f = np.where(f > 0.008856, np.cbrt(f), 7.787 * f + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=-1)


def smallest_difference(colours, vision):
    points = lab(np.array(colours), vision)
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    return distance[np.triu_indices(len(points), 1)].min()


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize(("k", "at_least"), [(6, 29), (12, 19)])
def test_qualitative_colours_can_be_told_apart(k, at_least, vision):
    assert smallest_difference(canvas.cluster_colours(k)(range(k))[:, :3], vision) > at_least


@pytest.mark.parametrize("vision", VISION)
def test_qualitative_colours_differ_from_missing_points_and_from_paper(vision):
    others = [to_rgb(canvas.MISSING_COLOUR), (1.0, 1.0, 1.0)]
    for colour in canvas.cluster_colours(12)(range(12))[:, :3]:
        assert min(smallest_difference([colour, other], vision) for other in others) > 15


@given(k=st.integers(1, 400))
def test_every_cluster_has_its_own_colour_and_always_the_same(k):
    colours = canvas.cluster_colours(k)(range(k))
    assert colours.shape == (k, 4)
    assert len(np.unique(colours, axis=0)) == k
    np.testing.assert_array_equal(colours, canvas.cluster_colours(k)(range(k)))


@given(k=st.integers(13, 400))
def test_neighbouring_numbers_of_many_clusters_are_far_apart(k):
    colours = canvas.cluster_colours(k)(range(k))[:, :3]
    step = np.linalg.norm(np.diff(lab(colours, "deuteranopia"), axis=0), axis=1)
    assert step.min() > 12


@given(ny=st.integers(1, 5000), nx=st.integers(1, 5000))
def test_a_scan_is_drawn_to_scale_unless_it_is_a_line(ny, nx):
    box = canvas.Box.of((ny, nx))
    assert min(box.width, box.height) >= 0.5
    assert max(box.width, box.height) <= 6.4 + 1e-9
    assert box.to_scale == bool(np.isclose(box.width / box.height, nx / ny))
    if max(ny / nx, nx / ny) <= 12.8:
        assert box.to_scale


@settings(max_examples=30, deadline=None)
@given(
    ny=st.integers(1, 2000),
    nx=st.integers(1, 2000),
    width=st.floats(0.1, 3),
    height=st.floats(0.1, 5),
    gap=st.none() | st.floats(0.1, 1),
)
def test_map_and_key_lie_in_the_figure_and_apart(ny, nx, width, height, gap):
    figure, axes, key = canvas.map_figure((ny, nx), title="", facts="", key=(width, height), gap=gap)
    here, there = axes.get_position(original=True), key.get_position(original=True)
    for box in (here, there):
        assert min(box.x0, box.y0) > 0
        assert max(box.x1, box.y1) < 1
    assert here.x1 < there.x0 if gap is not None else here.y0 > there.y1
    np.testing.assert_allclose(there.size * figure.get_size_inches(), (width, height))


def test_a_map_that_is_not_to_scale_says_so():
    figure, axes, _ = canvas.map_figure((1, 300), title="Line", facts="300 patterns", key=(1, 1), gap=None)
    assert [text.get_text() for text in figure.texts] == ["Line", "300 patterns · axes not to scale"]
    assert axes.get_aspect() == "auto"


def test_maps_in_micrometres_have_their_numbers_a_scale_bar_and_the_aspect_of_their_steps():
    y, x = 6000 - 8.0 * np.arange(12), 1234.5 + 3.5 * np.arange(20)
    scale = MapScale.of_coordinates(Coordinate(y, "µm", "stage y"), Coordinate(x, "µm", "stage x"))
    assert (scale.step, scale.units, scale.aspect) == ((-8.0, 3.5), "µm", 8 / 3.5)
    figure, axes, _ = canvas.map_figure((12, 20), title="", facts="", key=(1, 1), gap=0.2, scale=scale)
    assert axes.get_xlabel() == "x (µm)"
    figure.canvas.draw()
    for axis, first, step in ((axes.yaxis, 6000, -8.0), (axes.xaxis, 1234.5, 3.5)):
        for place, text in zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True):
            assert float(text.get_text()) == pytest.approx(first + step * place)
    (bar,) = axes.lines
    length = float(next(text.get_text() for text in axes.texts).removesuffix(" µm"))
    assert np.ptp(bar.get_xdata()) * 3.5 == pytest.approx(length)
    assert 0.1 * 20 * 3.5 <= length <= 0.25 * 20 * 3.5
    box = axes.get_window_extent()
    assert (box.height / 12) / (box.width / 20) == pytest.approx(8 / 3.5, rel=0.02)


def test_maps_of_points_have_neither_units_nor_a_scale_bar():
    results = xr.Dataset(coords={name: (name, np.arange(3.0), {"units": "1"}) for name in ("y", "x")})
    assert MapScale.of(results) == MapScale.of(xr.Dataset()) == COUNTED
    _, axes, _ = canvas.map_figure((3, 4), title="", facts="", key=(1, 1), gap=0.2)
    assert not axes.lines
    assert axes.get_xlabel() == "x (scan point)"
