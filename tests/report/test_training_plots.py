import math

import numpy as np
import pytest

from laue_dask.report import canvas
from laue_dask.report.training_plots import encodings, loss_curves


def row(epoch, **values):
    known = {"train_bce": 0.2, "validation_bce": 0.3, "train_mse": 0.01, "validation_mse": 0.02}
    return {"epoch": epoch, **known, **values}


def lines(axes):
    return {line.get_label(): np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()}


def test_losses_are_drawn_as_they_are_with_the_plateau_and_the_goal():
    history = [row(i, validation_bce=0.5 / i, train_mse=0.1 / i) for i in range(1, 8)]
    figure = loss_curves(history, plateau={"bce": 0.17, "mse": 0.012}, perfect={"bce": 0.09}, kept=7)
    left, right = figure.axes
    np.testing.assert_array_equal(lines(left)["validation"], [0.5 / i for i in range(1, 8)])
    np.testing.assert_array_equal(lines(right)["training"], [0.1 / i for i in range(1, 8)])
    assert set(lines(left)["all-black plateau"]) == {0.17}
    assert set(lines(left)["perfect reconstruction"]) == {0.09}
    assert set(lines(right)["all-black plateau"]) == {0.012}
    assert "perfect reconstruction" not in lines(right)
    assert (left.get_ylabel(), left.get_xlabel()) == ("binary cross entropy (nat per pixel)", "epoch")
    assert {text.get_text() for text in figure.legends[0].get_texts()} >= {"training", "validation", "weights kept"}
    assert canvas.png(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "history",
    [
        [row(1)],
        [row(1, train_bce=math.nan, train_mse=math.nan), row(2)],
        [row(i, validation_bce=10.0 ** (-i)) for i in range(1, 6)],
        [row(i) for i in range(1, 200)],
        [row(1, **dict.fromkeys(("train_bce", "validation_bce", "train_mse", "validation_mse"), math.nan))],
    ],
    ids=["one epoch", "no reconstruction", "decades", "many", "diverged"],
)
def test_any_history_can_be_drawn_with_numbers_on_both_axes(history):
    figure = loss_curves(history, plateau={}, perfect={})
    assert canvas.png(figure).startswith(b"\x89PNG")
    for axes in figure.axes:
        low, high = axes.get_ylim()
        shown = [
            label for label in axes.get_yticklabels() if label.get_text() and low <= label.get_position()[1] <= high
        ]
        assert len(shown) >= 1


@pytest.mark.parametrize(("n", "width"), [(1, 16), (6, 256), (3, 200)])
def test_each_pattern_has_its_features_and_its_reconstruction_below_it(n, width):
    rng = np.random.default_rng(n)
    patterns, drawn = rng.random((2, n, 128, 128), dtype=np.float32)
    features = rng.normal(size=(n, width)).astype(np.float32)
    figure = encodings(patterns, features, drawn, [f"pattern {i}" for i in range(n)])
    images = [axes.get_images()[0].get_array() for axes in figure.axes if axes.get_images()]
    assert len(images) == 3 * n
    for i in range(n):
        top, middle, bottom = images[3 * i : 3 * i + 3]
        np.testing.assert_array_equal(top, patterns[i])
        np.testing.assert_array_equal(np.ma.filled(middle, np.nan).ravel()[:width], features[i])
        np.testing.assert_array_equal(bottom, drawn[i])
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == [f"pattern {i}" for i in range(n)]
    assert canvas.png(figure).startswith(b"\x89PNG")
