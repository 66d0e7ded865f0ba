import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.report import grains


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**32))
def test_a_boundary_lies_between_every_two_neighbours_that_differ(ny, nx, seed):
    labels = np.random.default_rng(seed).integers(-1, 3, (ny, nx)).astype(np.int32)
    expected = {(x + 0.5, y) for y in range(ny) for x in range(nx - 1) if labels[y, x] != labels[y, x + 1]}
    expected |= {(x, y + 0.5) for y in range(ny - 1) for x in range(nx) if labels[y, x] != labels[y + 1, x]}
    lines = grains.boundaries(labels)
    assert {tuple(line.mean(axis=0)) for line in lines} == expected
    assert np.allclose(np.linalg.norm(lines[:, 1] - lines[:, 0], axis=1), 1)


def test_proposed_regions_are_drawn_and_counted(results):
    results["boundary_strength"][:] = 0.1
    results["boundary_strength"][0:3, 0:5] = 1.0
    figure = grains.boundary_map(results)
    drawn = figure.axes[0].patches
    assert len(drawn) == 2 * len(grains.proposals(results)) == 2
    assert drawn[0].get_xy() == (-0.5, -0.5)
    assert (drawn[0].get_width(), drawn[0].get_height()) == (5, 3)
    assert figure.texts[1].get_text() == "1 region worth a dense scan"


def test_density_is_of_the_largest_clusters_and_the_components_that_were_used(make_results):
    figure = grains.density_figure(make_results(ks=(8,)), 8)
    assert len(figure.axes) == 5  # M_PCA
    assert [line.get_label() for line in figure.legends[0].get_lines()] == [f"cluster {i}" for i in range(5)]


def test_density_is_of_the_clusters_asked_for(make_results):
    figure = grains.density_figure(make_results(ks=(8,)), 8, clusters=[6, 1])
    assert [line.get_label() for line in figure.legends[0].get_lines()] == ["cluster 6", "cluster 1"]


def test_errors_are_drawn_over_k():
    rows = [{"k": 2**i, "mse": 9 / 2**i, "ks": 1 / 2**i} for i in range(1, 9)]
    figure = grains.approximation(rows, unit="deg²")
    assert [axes.get_ylabel() for axes in figure.axes] == ["mean squared error (deg²)", "Kolmogorov–Smirnov distance"]
    assert figure.axes[0].lines[0].get_ydata().tolist() == [row["mse"] for row in rows]
