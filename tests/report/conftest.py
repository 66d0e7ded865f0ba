import numpy as np
import pytest
import xarray as xr

from laue_dask.schema import RESULTS


@pytest.fixture
def make_results():
    """A results dataset of any scan shape, as `xarray.open_zarr` would give it; the last points have no pattern."""

    def make(*, shape=(12, 20), ks=(3, 6), missing=2, suggested_k=(6,)):
        rng = np.random.default_rng(0)
        n = shape[0] * shape[1]
        valid = np.arange(n) < n - missing
        components = np.where(valid[:, None], rng.normal(size=(n, 8)), np.nan).astype(np.float32)
        labels = np.full((len(ks), n), -1, np.int32)
        delegate = np.full((len(ks), max(ks)), -1, np.int64)
        for row, k in enumerate(ks):
            labels[row, valid] = np.arange(valid.sum()) * k // valid.sum()
            delegate[row, :k] = [np.flatnonzero(labels[row] == cluster)[0] for cluster in range(k)]
        variance = np.geomspace(9, 1e-3, 8)
        grain = np.where(valid, np.arange(n) * 5 // n, -1)
        error = np.full(n, np.nan, np.float32)
        error[: n // 2] = rng.uniform(0.02, 0.05, n // 2)
        score_k = np.arange(2, 9)
        values = {
            "components": components,
            "explained_variance": variance,
            "explained_variance_ratio": variance / variance.sum(),
            "labels": labels.reshape(-1, *shape),
            "delegate": delegate,
            "pca_rgb": rng.integers(0, 256, (len(ks), *shape, 3), dtype=np.uint8),
            "direct_rgb": rng.integers(0, 256, (*shape, 3), dtype=np.uint8),
            "silhouette": np.exp(-((score_k - 6.0) ** 2) / 6),
            "calinski_harabasz": 900 * np.exp(-((score_k - 6.0) ** 2) / 6),
            "reconstruction_error": error.reshape(shape),
            "grain": grain.astype(np.int32).reshape(shape),
            "boundary_strength": np.where(valid, rng.uniform(0.1, 1, n), np.nan).astype(np.float32).reshape(shape),
            "distance_to_centroid": np.where(labels >= 0, rng.uniform(0, 2, labels.shape), np.nan)
            .astype(np.float32)
            .reshape(-1, *shape),
        }
        dataset = xr.Dataset(
            {name: (RESULTS[name].dims, value) for name, value in values.items()},
            coords={"k": np.array(ks, np.int32), "score_k": score_k.astype(np.int32)},
            attrs={"scan_shape": list(shape), "suggested_k": list(suggested_k)},
        )
        dataset["components"].attrs["m_pca"] = 5
        return dataset

    return make


@pytest.fixture
def results(make_results):
    return make_results()


@pytest.fixture
def patterns(results):
    """Reduced patterns of every delegate, by pattern index."""
    rng = np.random.default_rng(1)
    index = np.unique(results["delegate"].values)
    return {int(i): rng.integers(0, 256, (128, 128), dtype=np.uint8) for i in index if i >= 0}
