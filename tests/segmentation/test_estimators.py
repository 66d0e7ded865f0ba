import warnings

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from laue_dask.errors import InputError
from laue_dask.segmentation import estimators, pca
from laue_dask.segmentation.clustering import KMeans
from laue_dask.segmentation.estimators import DensityClusters, GaussianMixtureClusters, MeanShiftClusters

MAKERS = {
    "kmeans": lambda **options: KMeans(3, **options),
    "gmm": lambda **options: GaussianMixtureClusters(3, bayesian=False, **options),
    "bgm": lambda **options: GaussianMixtureClusters(5, bayesian=True, **options),
    "hdbscan": lambda **options: DensityClusters(min_cluster_size=8, **options),
    "mean_shift": lambda **options: MeanShiftClusters(**options),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pca, "block_rows", lambda columns: 40)


def clouds(n: int = 150, m: int = 4, seed: int = 0, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Three clouds of unequal size, far apart; and which is whose."""
    rng = np.random.default_rng(seed)
    of = rng.choice(3, size=n, p=[0.5, 0.3, 0.2])
    return ((rng.normal(size=(n, m)) + 30 * np.eye(3, m)[of]) * scale).astype(np.float32), of


@pytest.mark.parametrize("name", MAKERS)
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([1e-4, 1.0, 1e4]), sample=st.sampled_from([80, 1000]))
@settings(max_examples=5)
def test_every_estimator_finds_the_clouds_and_counts_from_the_largest(name, seed, scale, sample):
    X, of = clouds(seed=seed, scale=scale)
    fitted = MAKERS[name](sample=sample).fit(X)
    sizes = np.bincount(fitted.labels_)
    assert fitted.labels_.dtype == np.int32
    assert fitted.labels_.shape == (len(X),)
    assert len(sizes) == fitted.n_clusters_
    assert sizes.min() > 0
    first = [np.flatnonzero(fitted.labels_ == label)[0] for label in range(len(sizes))]
    assert sorted(range(len(sizes)), key=lambda i: (-sizes[i], first[i])) == list(range(len(sizes)))
    assert np.array_equal(fitted.predict(X), fitted.labels_)
    # a mixture of five components and a density may cut a cloud, but never join two
    assert all(len(np.unique(of[fitted.labels_ == label])) == 1 for label in range(len(sizes)))
    if name in ("kmeans", "gmm"):
        assert adjusted_rand_score(of, fitted.labels_) == 1


@pytest.mark.parametrize("name", MAKERS)
def test_chunks_do_not_change_a_label(name):
    X, _ = clouds(seed=3)
    whole = MAKERS[name](sample=90).fit(X)
    for chunks in [(150, 4), (37, 4), (64, 3), (11, 1), (149, 2)]:
        table = da.from_array(X, chunks=chunks)
        chunked = MAKERS[name](sample=90).fit(table)
        assert np.array_equal(chunked.labels_, whole.labels_)
        lazy = chunked.predict(table)
        assert isinstance(lazy, da.Array)
        assert np.array_equal(lazy.compute(), whole.labels_)


def test_bayesian_mixture_leaves_superfluous_components_empty():
    X, of = clouds(400)
    fitted = GaussianMixtureClusters(10, bayesian=True).fit(X)
    assert 3 <= fitted.n_clusters_ < 10
    assert fitted.weights_.shape == (fitted.n_clusters_,)
    assert fitted.weights_.min() > 0
    assert adjusted_rand_score(of, fitted.labels_) > 0.8


def test_mixture_finds_ellipsoids_that_k_means_cuts():
    rng = np.random.default_rng(0)
    of = np.repeat([0, 1], 300)
    X = rng.normal(size=(600, 2)) * [20, 0.3]
    X[of == 1] += [0, 6]
    X = X.astype(np.float32)
    assert adjusted_rand_score(of, KMeans(2).fit(X).labels_) < 0.1
    best = max(
        adjusted_rand_score(of, GaussianMixtureClusters(2, bayesian=True, random_state=s).fit(X).labels_)
        for s in range(3)
    )
    assert best > 0.9


def test_hdbscan_finds_crescents_that_k_means_cuts():
    rng = np.random.default_rng(0)
    of, angle = np.repeat([0, 1], 300), rng.uniform(0, np.pi, 600)
    X = np.column_stack([np.cos(angle), np.sin(angle)])
    X[of == 1] = [1, 0.4] - X[of == 1]
    X = (X + rng.normal(size=X.shape) * 0.03).astype(np.float32)
    assert adjusted_rand_score(of, KMeans(2).fit(X).labels_) < 0.8
    assert adjusted_rand_score(of, DensityClusters().fit(X).labels_) > 0.99


def test_noise_joins_the_nearest_member():
    X, _ = clouds(200)
    scattered = np.random.default_rng(5).uniform(-20, 50, size=(40, 4)).astype(np.float32)
    X = np.vstack([X, scattered])
    fitted = DensityClusters(min_cluster_size=8).fit(X)
    assert 0.05 < fitted.noise_share_ < 40 / 240
    members = fitted.members_ * fitted.scale_ + fitted.mean_
    nearest = ((scattered[:, None] - members) ** 2).sum(axis=2).argmin(axis=1)
    assert np.array_equal(fitted.labels_[200:], fitted.predict(members[nearest]))


def test_a_mixture_that_does_not_converge_says_so_without_a_warning(monkeypatch):
    monkeypatch.setattr(estimators, "MAX_MIXTURE_STEPS", 1)
    X = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not GaussianMixtureClusters(8, bayesian=True).fit(X).converged_
    assert GaussianMixtureClusters(1, bayesian=False).fit(X).n_clusters_ == 1


@pytest.mark.parametrize(
    ("estimator", "text"),
    [
        (
            GaussianMixtureClusters(9, bayesian=True),
            "9 clusters were asked for, but the 60 rows of the sample fall into 3 distinct",
        ),
        (DensityClusters(min_cluster_size=61), "clusters of at least 61 among 60 patterns"),
        (MeanShiftClusters(), "most patterns are equal"),
    ],
)
def test_impossible_parameters_are_refused_in_one_line(estimator, text):
    X = np.repeat(np.eye(3, dtype=np.float32), 20, axis=0)
    with pytest.raises(InputError, match=text) as caught:
        estimator.fit(X)
    assert "\n" not in str(caught.value)


def test_a_cloud_without_clumps_is_no_cluster_for_hdbscan():
    X = np.random.default_rng(0).uniform(size=(100, 6)).astype(np.float32)
    with pytest.raises(InputError, match="found no cluster of at least 40 among 100 patterns"):
        DensityClusters(min_cluster_size=40).fit(X)


@pytest.mark.parametrize("name", MAKERS)
def test_rows_that_are_not_finite_are_refused_with_their_number(name):
    X, _ = clouds()
    X[[4, 9]] = np.nan
    with pytest.raises(InputError, match="2 of 150 rows have values that are not finite"):
        MAKERS[name]().fit(X)
