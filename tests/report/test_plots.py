import itertools
import struct
from concurrent.futures import ThreadPoolExecutor

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.text import Text
from PIL import Image

from laue_dask.report import canvas, grains, plots

MAP = 0
KEY = 1


def map_image(figure):
    return figure.axes[MAP].images[0].get_array()


def legend_texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def facts(figure):
    return figure.texts[1].get_text()


def png_size(path):
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", header[16:24])


def figures(results, patterns):
    k = int(results["k"][-1])
    return {
        "labels": plots.label_map(results, k),
        "pca": plots.pca_map(results, k),
        "direct": plots.direct_colouring(results),
        "distance": plots.distance_map(results, k),
        "reconstruction": plots.reconstruction_map(results),
        "variance": plots.explained_variance(results),
        "scores": plots.scores(results),
        "delegates": plots.delegate_gallery(results, k, patterns),
        "grains": grains.grain_map(results),
        "grain sizes": grains.grain_sizes(results),
        "boundaries": grains.boundary_map(results),
        "density": grains.density_figure(results, k),
    }


# what is drawn


def test_label_map_shows_the_labels_with_missing_points_masked(results):
    image = map_image(plots.label_map(results, 6))
    labels = results["labels"].sel(k=6).values
    np.testing.assert_array_equal(image.mask, labels == -1)
    np.testing.assert_array_equal(image.compressed(), labels[labels >= 0])


def test_label_map_draws_each_label_in_its_own_colour_and_missing_points_not_at_all(results):
    labels = results["labels"].sel(k=6).values
    drawn = plots.label_map(results, 6).axes[MAP].images[0]
    colours = drawn.to_rgba(drawn.get_array())
    np.testing.assert_allclose(colours[labels >= 0], canvas.cluster_colours(6)(labels[labels >= 0]), atol=1e-6)
    assert (colours[labels < 0][:, 3] == 0).all()


def test_delegates_are_marked_white_with_a_dark_edge_at_their_positions(results):
    marks = plots.label_map(results, 6).axes[MAP].collections[0]
    index = results["delegate"].sel(k=6).values[:6]
    np.testing.assert_array_equal(marks.get_offsets(), np.column_stack([index % 20, index // 20]))
    np.testing.assert_array_equal(marks.get_facecolor(), [to_rgba("white")])
    assert sum(marks.get_edgecolor()[0][:3]) < 0.6


def test_padding_of_the_delegates_is_not_marked(results):
    assert len(plots.label_map(results, 3).axes[MAP].collections[0].get_offsets()) == 3


def test_delegates_are_marked_up_to_32_clusters(make_results):
    results = make_results(ks=(32, 33))
    assert len(plots.label_map(results, 32).axes[MAP].collections[0].get_offsets()) == 32
    above = plots.label_map(results, 33)
    assert not above.axes[MAP].collections
    assert "delegate" not in legend_texts(above)


def test_legend_counts_the_missing_points(results):
    assert legend_texts(plots.label_map(results, 6)) == ["delegate", "no usable pattern (2)"]


def test_a_complete_scan_has_no_legend_entry_for_missing_points(make_results):
    assert legend_texts(plots.direct_colouring(make_results(missing=0))) == []


def test_title_and_facts_say_k_patterns_and_m_pca(results):
    figure = plots.label_map(results, 6)
    assert figure.texts[0].get_text() == "K = 6, natural labels"
    assert facts(figure) == "238 patterns · M_PCA = 5"


@pytest.mark.parametrize("shape", [(12, 20), (4, 60)])
def test_the_key_gives_every_cluster_its_colour_and_share(make_results, shape):
    results = make_results(shape=shape)
    key = plots.label_map(results, 6).axes[KEY]
    labels = results["labels"].sel(k=6).values
    share = 100 * np.bincount(labels[labels >= 0]) / (labels >= 0).sum()
    (bars,) = key.collections
    along = 1 if shape == (4, 60) else 0
    np.testing.assert_allclose([path.vertices[:, along].max() for path in bars.get_paths()], share)
    np.testing.assert_allclose(bars.get_facecolor(), canvas.cluster_colours(6)(range(6)))
    assert [text.get_text() for text in key.texts] == [f"{value:.1f}" for value in share]
    assert {key.get_xlabel(), key.get_ylabel()} == {"cluster", "patterns (%)"}


def test_colour_maps_show_the_stored_colours_and_leave_missing_points_transparent(results):
    there = results["labels"].sel(k=6).values >= 0
    for figure, rgb in (
        (plots.direct_colouring(results), results["direct_rgb"].values),
        (plots.pca_map(results, 6), results["pca_rgb"].sel(k=6).values),
    ):
        image = map_image(figure)
        np.testing.assert_array_equal(image[..., :3], rgb)
        np.testing.assert_array_equal(image[..., 3], np.where(there, 255, 0))


def test_the_colour_key_places_red_green_and_blue_at_the_labels_of_the_components(results):
    key = plots.direct_colouring(results).axes[KEY]
    corners = np.concatenate([mesh.get_coordinates()[:-1, :-1].reshape(-1, 2) for mesh in key.collections])
    colours = np.concatenate([np.asarray(mesh.get_array()).reshape(-1, 3) for mesh in key.collections])
    for text, expected in zip(key.texts[:3], np.eye(3), strict=True):
        nearest = np.linalg.norm(corners - text.get_position(), axis=1).argsort()[:1]
        assert np.abs(colours[nearest] - expected).max() < 0.1
    assert [text.get_text() for text in key.texts[:3]] == ["x₁", "x₂", "x₃"]


def test_distances_are_shown_up_to_a_quantile_and_the_bar_says_that_there_are_larger_ones(results):
    results["distance_to_centroid"][1, 0, 0] = 1e6
    figure = plots.distance_map(results, 6)
    image = map_image(figure)
    np.testing.assert_array_equal(image.filled(np.nan), results["distance_to_centroid"].sel(k=6).values)
    drawn = figure.axes[MAP].images[0]
    assert drawn.get_clim()[1] < 1e6
    assert drawn.colorbar.extend == "max"


def test_reconstruction_error_says_for_how_many_points_it_was_computed(results):
    figure = plots.reconstruction_map(results)
    assert facts(figure) == "computed for 120 of 240 points"
    assert legend_texts(figure) == ["not computed (120)"]


def test_few_points_of_a_large_scan_are_drawn_large_enough_to_be_seen(make_results):
    results = make_results(shape=(200, 300))
    error = results["reconstruction_error"].values
    error[:] = np.nan
    error[[3, 150], [299, 0]] = 0.1, 0.2
    (points,) = plots.reconstruction_map(results).axes[MAP].collections
    np.testing.assert_array_equal(points.get_offsets(), [[299, 3], [0, 150]])
    np.testing.assert_allclose(points.get_array(), [0.1, 0.2])
    assert points.get_sizes().min() > 3**2


def test_a_constant_map_can_be_drawn(results):
    results["reconstruction_error"][:] = 0.5
    canvas.png(plots.reconstruction_map(results))


def test_explained_variance_is_logarithmic_beside_its_running_sum_with_m_pca_marked(results):
    figure = plots.explained_variance(results)
    left, right = figure.axes
    assert left.get_yscale() == "log"
    np.testing.assert_array_equal(left.lines[0].get_xdata(), np.arange(1, 9))
    np.testing.assert_allclose(left.lines[0].get_ydata(), results["explained_variance"])
    np.testing.assert_allclose(right.lines[0].get_ydata(), 100 * results["explained_variance_ratio"].cumsum())
    assert [list(axes.lines[1].get_xdata()) for axes in (left, right)] == [[5, 5], [5, 5]]
    assert legend_texts(figure) == ["M_PCA = 5"]
    share = 100 * float(results["explained_variance_ratio"][:5].sum())
    assert facts(figure) == f"8 components, the first 5 explain {share:.2f} % of the variance"


def test_components_without_variance_are_left_out_of_the_logarithm(results):
    results["explained_variance"][3:] = 0.0
    drawn = plots.explained_variance(results).axes[0].lines[0].get_ydata()
    assert np.isfinite(drawn).tolist() == [True] * 3 + [False] * 5


def test_identical_patterns_have_a_spectrum_that_can_be_drawn(results):
    results["explained_variance"][:] = 0.0
    canvas.png(plots.explained_variance(results))


def test_scores_are_drawn_against_k_with_every_suggested_k_marked(make_results):
    results = make_results(suggested_k=(3, 6))
    figure = plots.scores(results)
    for axes, name in zip(figure.axes, ("silhouette", "calinski_harabasz"), strict=True):
        np.testing.assert_array_equal(axes.lines[0].get_xydata(), np.column_stack([results["score_k"], results[name]]))
        assert [line.get_xdata()[0] for line in axes.lines[1:]] == [3, 6]
    assert legend_texts(figure) == ["suggested K = 3, 6"]


def test_what_is_unchanged_is_not_drawn_again_but_for_what_is_named(results, tmp_path):
    errors = [{"k": 2**i, "mse": 9 / 2**i, "ks": 1 / 2**i} for i in range(1, 9)]
    plots.write_plots(results, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    plots.write_plots(results, tmp_path, unchanged=(3, 6), changed=("approximation", "scores"), errors=errors)
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert {name for name, when in after.items() if before.get(name) != when} == {"approximation.png", "scores.png"}
    plots.write_plots(results, tmp_path, unchanged=(3,), changed=())
    again = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    drawn = {name for name, when in again.items() if after[name] != when}
    assert drawn == {name for name in before if name.endswith("_k06.png")}
    assert set(again) == set(before)


def test_scores_of_repeated_fits_are_a_band_and_their_agreement_a_curve(make_results):
    results = make_results(suggested_k=(6,))
    k = results["score_k"].values
    spread = np.linspace(-0.1, 0.1, 21)
    draws = results["silhouette"].values[:, None] + spread
    draws[0] = np.nan
    results["silhouette_draws"] = (("score_k", "draw"), draws)
    results["calinski_harabasz_draws"] = (("score_k", "draw"), 1000 * draws)
    results["stability"] = (("score_k",), np.where(k == 2, np.nan, 1 / k))
    figure = plots.scores(results)
    assert [axes.get_ylabel() for axes in figure.axes][2] == "stability (mean ARI)"
    np.testing.assert_array_equal(figure.axes[2].lines[0].get_ydata(), results["stability"])
    assert not figure.axes[2].collections
    drawn = figure.axes[0].collections[0].get_paths()[0].vertices
    at = drawn[drawn[:, 0] == 6, 1]
    assert (at.min(), at.max()) == pytest.approx((results["silhouette"].values[4] + np.array([-0.09, 0.09])).tolist())
    assert not (drawn[:, 0] == 2).any()
    assert legend_texts(figure) == ["suggested K = 6", "90 % of 21 repeated fits"]


@pytest.mark.parametrize("suggested", [None, []])
def test_scores_without_a_suggestion_have_no_mark(results, suggested):
    del results.attrs["suggested_k"]
    if suggested is not None:
        results.attrs["suggested_k"] = suggested
    figure = plots.scores(results)
    assert [len(axes.lines) for axes in figure.axes] == [1, 1]
    assert not figure.legends


def test_gallery_shows_each_delegate_in_the_colour_of_its_cluster(results, patterns):
    figure = plots.delegate_gallery(results, 6, patterns)
    index = results["delegate"].sel(k=6).values
    (axes,) = figure.axes
    assert len(axes.images) == 6
    shown = zip(axes.images, axes.patches, axes.texts, strict=True)
    for cluster, (image, frame, text) in enumerate(shown):
        np.testing.assert_array_equal(image.get_array(), patterns[index[cluster]])
        y, x = divmod(int(index[cluster]), 20)
        assert text.get_text() == f"cluster {cluster}\n#{index[cluster]}, x {x}, y {y}"
        assert frame.get_edgecolor() == to_rgba(canvas.cluster_colours(6)(cluster))
        left, right, bottom, top = image.get_extent()
        assert frame.get_bbox().extents == pytest.approx((left, top, right, bottom))
        assert left < text.get_position()[0] < right
        assert text.get_position()[1] < top


def test_gallery_shows_the_largest_24_clusters_whose_pattern_is_given(make_results):
    results = make_results(ks=(30,))
    labels = results["labels"].values.reshape(-1)
    labels[labels == 0] = 29
    index = results["delegate"].values[0]
    given = {int(i): np.zeros((128, 128), np.uint8) for cluster, i in enumerate(index) if cluster != 7}
    titles = [text.get_text().split("\n")[0] for text in plots.delegate_gallery(results, 30, given).axes[0].texts]
    assert len(titles) == 24
    assert "cluster 29" in titles
    assert "cluster 0" not in titles
    assert "cluster 7" not in titles


# how it looks


@pytest.mark.parametrize("name", ["labels", "pca", "direct", "distance", "reconstruction"])
def test_maps_have_labelled_axes_in_scan_points_and_equal_scales(results, patterns, name):
    axes = figures(results, patterns)[name].axes[MAP]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x (scan point)", "y (scan point)")
    assert axes.get_aspect() == 1.0
    assert axes.get_xlim() == (-0.5, 19.5)
    assert axes.get_ylim() == (11.5, -0.5)


def test_curves_have_labelled_axes(results):
    assert [axes.get_ylabel() for axes in plots.scores(results).axes] == ["silhouette score", "Calinski–Harabasz score"]
    assert plots.scores(results).axes[-1].get_xlabel() == "number of clusters K"
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in plots.explained_variance(results).axes)


@pytest.mark.parametrize(
    ("shape", "ks"), [((12, 20), (6,)), ((60, 100), (64,)), ((1, 300), (12,)), ((500, 40), (24,)), ((2, 3), (2,))]
)
def test_no_text_overlaps_another_or_leaves_the_figure(make_results, shape, ks):
    results = make_results(shape=shape, ks=ks, missing=1)
    patterns = {int(i): np.zeros((128, 128), np.uint8) for i in results["delegate"].values.ravel()}
    for name, figure in figures(results, patterns).items():
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
        hidden = {
            label
            for axes in figure.axes
            for axis in (axes.xaxis, axes.yaxis)
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
            for label in (tick.label1, tick.label2)
            if not axes.axison or tick not in axis._update_ticks() or not label.get_visible()
        }
        axis_labels = {
            label for axes in figure.axes if not axes.axison for label in (axes.xaxis.label, axes.yaxis.label)
        }
        boxes = {t: t.get_window_extent(renderer) for t in texts if t not in hidden | axis_labels}
        for text, box in boxes.items():
            inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
            assert inside, f"{name}: '{text.get_text()}' leaves the figure"
        for (one, a), (two, b) in itertools.combinations(boxes.items(), 2):
            assert not a.padded(-1).overlaps(b.padded(-1)), f"{name}: '{one.get_text()}' over '{two.get_text()}'"


# what is written


def test_every_figure_is_written_as_png_of_150_dpi(results, patterns, tmp_path):
    written = plots.write_plots(results, tmp_path / "plots", patterns=patterns)
    assert [path.name for path in written] == [
        "direct_colouring.png",
        "explained_variance.png",
        "scores.png",
        "reconstruction_error.png",
        "grains.png",
        "grain_sizes.png",
        "boundaries.png",
        "labels_k03.png",
        "pca_k03.png",
        "distance_to_centroid_k03.png",
        "delegates_k03.png",
        "density_k03.png",
        "labels_k06.png",
        "pca_k06.png",
        "distance_to_centroid_k06.png",
        "delegates_k06.png",
        "density_k06.png",
    ]
    assert set((tmp_path / "plots").iterdir()) == set(written)
    expected = plots.label_map(results, 6).get_size_inches() * 150
    np.testing.assert_allclose(png_size(tmp_path / "plots" / "labels_k06.png"), expected, atol=1)


@pytest.mark.parametrize(
    ("absent", "files"),
    [
        ("silhouette", ["scores.png"]),
        ("explained_variance", ["explained_variance.png"]),
        ("direct_rgb", ["direct_colouring.png"]),
        ("pca_rgb", ["pca_k03.png"]),
        ("delegate", ["delegates_k03.png"]),
        ("distance_to_centroid", ["distance_to_centroid_k03.png"]),
        ("reconstruction_error", ["reconstruction_error.png"]),
        ("components", ["density_k03.png"]),
        ("grain", ["grains.png", "grain_sizes.png", "boundaries.png"]),
        ("boundary_strength", ["boundaries.png"]),
    ],
)
def test_figures_of_absent_variables_are_left_out_and_nothing_else(
    make_results, patterns, tmp_path, monkeypatch, absent, files
):
    monkeypatch.setattr(canvas, "png", lambda figure: b"drawn")
    results = make_results(ks=(3,))
    given = {int(i): np.zeros((128, 128), np.uint8) for i in results["delegate"].values.ravel()}
    complete = {path.name for path in plots.write_plots(results, tmp_path, patterns=given)}
    rest = {path.name for path in plots.write_plots(results.drop_vars(absent), tmp_path, patterns=given)}
    assert complete - rest == set(files)


def test_reconstruction_error_that_was_not_computed_is_not_drawn(results, tmp_path, monkeypatch):
    monkeypatch.setattr(canvas, "png", lambda figure: b"drawn")
    results["reconstruction_error"][:] = np.nan
    assert "reconstruction_error" not in {path.stem for path in plots.write_plots(results, tmp_path)}


def test_without_patterns_there_is_no_gallery(results, tmp_path, monkeypatch):
    monkeypatch.setattr(canvas, "png", lambda figure: b"drawn")
    assert not [path for path in plots.write_plots(results, tmp_path) if path.stem.startswith("delegates")]


def test_figures_of_a_k_that_is_gone_are_removed_and_other_files_kept(results, patterns, tmp_path, monkeypatch):
    monkeypatch.setattr(canvas, "png", lambda figure: b"drawn")
    plots.write_plots(results, tmp_path, patterns=patterns)
    (tmp_path / "my_labels_k06.png").write_bytes(b"mine")
    written = plots.write_plots(results.sel(k=[3]), tmp_path, patterns=patterns)
    assert not [path for path in written if "k06" in path.name]
    assert set(tmp_path.iterdir()) == {*written, tmp_path / "my_labels_k06.png"}


def test_a_figure_that_fails_leaves_no_partial_file_and_the_old_one_in_place(results, tmp_path, monkeypatch):
    (tmp_path / "direct_colouring.png").write_bytes(b"old")

    def fail(self, *args, **kwargs):
        args[0].write(b"\x89PNG half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="no space"):
        plots.write_plots(results, tmp_path)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("direct_colouring.png", b"old")]


def test_the_same_results_give_the_same_bytes_in_any_thread_and_touch_no_global_state(results, tmp_path):
    before = dict(matplotlib.rcParams)
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda name: plots.write_plots(results.sel(k=[3]), tmp_path / name), ["one", "two"])
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert dict(matplotlib.rcParams) == before
