"""Features → components (section 3.2 of the paper), of one scan or of several together."""

from collections.abc import Callable

import dask.array as da
import numpy as np

from laue_dask.compute.cluster import Workers
from laue_dask.compute.run import is_complete, write_array
from laue_dask.config import PCAConfig
from laue_dask.io import block_reader
from laue_dask.io.results import ResultsWriter
from laue_dask.pipeline.reuse import Output
from laue_dask.runtime.progress import Progress
from laue_dask.segmentation.pca import IncrementalPCA, choose_components

SPECTRUM_ARRAYS = ("explained_variance", "explained_variance_ratio")
"""Results of the transformation beside the components."""


def transform(
    features: da.Array,
    config: PCAConfig,
    results: ResultsWriter,
    output: Output,
    *,
    workers: Workers,
    progress: Progress,
    fit: Callable[[], IncrementalPCA] | None = None,
) -> tuple[da.Array, int]:
    """Transform features by PCA (section 3.2): all components are kept, `n_components_` of them are used.

    Parameters
    ----------
    output
        Of this stage: what an earlier run left of it is kept.
    fit
        Gives the transformation fitted to these features and those of other scans, where it has to be known; by default
        it is fitted to these.

    Returns
    -------
    components : (pattern, M_AE) float32
        On disk, lazy; NaN where there are no features.
    m_pca
        How many of them are used.
    """
    array = results.blocks("components", features.shape, block=features.chunks[0][0], key=output.key)
    kept = is_complete(array)
    output.announce(kept=kept)
    if kept and output.holds(SPECTRUM_ARRAYS):
        ratio = [results.keep(name) for name in SPECTRUM_ARRAYS][-1]
        m_pca = choose_components(np.asarray(ratio[...]), config.components)
    else:
        pca = fit() if fit else IncrementalPCA(n_components=config.components).fit(features)
        lazy = pca.transform(features, dtype=np.float32)
        write_array(lazy, array, stage="components", client=workers.client, progress=progress)
        for name in SPECTRUM_ARRAYS:
            results.put(name, getattr(pca, f"{name}_"))
        m_pca = int(pca.n_components_)
    array.attrs["m_pca"] = m_pca
    return block_reader.lazy_array(array), m_pca
