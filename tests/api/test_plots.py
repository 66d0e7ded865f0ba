"""Figures through the Python door: axes, of a figure that a notebook shows or of one's own."""

import matplotlib as mpl
import numpy as np
import pytest

from laue_dask.api.plots import Plots
from laue_dask.errors import InputError

OF_K = ("labels", "pca", "distance")
WITH_AXES = (
    *OF_K,
    "direct_colouring",
    "scores",
    "explained_variance",
    "grains",
    "grain_sizes",
    "boundaries",
    "quality",
)


@pytest.fixture(autouse=True)
def plt():
    mpl.use("agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


def drawn(run, name, **options):
    return getattr(run.plot, name)(*((3,) if name in (*OF_K, "delegates") else ()), **options)


def test_every_figure_is_tried_here():
    assert {name for name in vars(Plots) if not name.startswith("_")} == {*WITH_AXES, "delegates"}


@pytest.mark.parametrize("name", [*WITH_AXES, "delegates"])
def test_a_figure_is_known_to_pyplot_so_that_a_notebook_shows_it(run, name, plt):
    ax = drawn(run, name)
    assert plt.get_fignums() == [1]
    assert ax is plt.gcf().axes[0]
    plt.gcf().canvas.draw()


@pytest.mark.parametrize("name", WITH_AXES)
def test_a_picture_is_drawn_on_given_axes_and_nowhere_else(run, name, plt):
    figure, (left, right) = plt.subplots(1, 2)
    assert drawn(run, name, ax=right) is right
    assert plt.get_fignums() == [1]
    assert not left.has_data()
    assert right.has_data() or right.images
    figure.canvas.draw()


def test_the_picture_of_labels_is_that_of_the_figure_the_same_way_up(run, plt):
    own = drawn(run, "labels")
    given = drawn(run, "labels", ax=plt.subplots()[1])
    for ax in (own, given):
        np.testing.assert_array_equal(ax.images[0].get_array(), run.results["labels"].sel(k=3))
        assert ax.get_ylim() == (7.5, -0.5)
    assert own.images[0].get_cmap()(1) == given.images[0].get_cmap()(1)


def test_what_was_not_computed_is_not_drawn(run, monkeypatch):
    empty = run.unmasked.assign(unexplained=run.unmasked["unexplained"] * np.nan)
    monkeypatch.setattr(type(run), "unmasked", empty)
    with pytest.raises(InputError, match="its results have no unexplained, so there is nothing to draw"):
        run.plot.quality()


def test_the_figures_there_are_are_told(run):
    assert "labels, pca, distance" in repr(run.plot)


@pytest.mark.usefixtures("plt")
def test_label_maps_carry_micrometres_and_draw_themselves_as_the_figure_does(run):
    labels = run.labels(3)
    assert labels["y"].attrs["units"] == labels["x"].attrs["units"] == "µm"
    np.testing.assert_allclose(labels["x"].values, 6000 + 5 * np.arange(9))
    mine, theirs = labels.plot(), run.plot.labels(3)
    for axes in (mine, theirs):
        assert axes.yaxis_inverted()  # row 0 is at the top
        assert axes.get_ylabel() == "y (µm)"
    np.testing.assert_array_equal(mine.images[0].get_array(), theirs.images[0].get_array())
    assert mine.images[0].cmap == theirs.images[0].cmap


@pytest.mark.usefixtures("plt")
def test_label_maps_still_draw_as_xarray_does_where_asked(run):
    labels = run.labels(3)
    assert labels.plot.imshow(add_colorbar=False) is not None
    assert labels.isel(y=0).plot() is not None
