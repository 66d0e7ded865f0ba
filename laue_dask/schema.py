"""Every array on disk: name, dimensions, dtype, fill value, units and meaning, in one place.

Both stores are Zarr v3. An array is created from its spec alone (`create`) and a store is compared with the specs when
it is opened (`check`), so what is written and what is read cannot drift apart. Compressed data carry a CRC-32C behind
the compressor: a flipped bit raises on reading instead of becoming a number.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from laue_dask.errors import StoreError

SCHEMA_VERSION = 1
"""Version of both layouts; root attribute `laue_dask_schema`."""

PATTERN_SIZE = 128
"""Side of a reduced pattern, in pixels (paper, section 3.1)."""


@dataclass(frozen=True)
class ArraySpec:
    """One array on disk.

    Attributes
    ----------
    dims
        Dimension names, stored as `dimension_names`.
    dtype
        Name of the dtype; ``None`` where the data decide (the detector's own dtype).
    fill
        Value of what was never written.
    units
        Units as xarray's `units` attribute; empty for none.
    meaning
        One line, stored as the `long_name` attribute.
    """

    dims: tuple[str, ...]
    dtype: str | None
    fill: Any
    units: str
    meaning: str
    required: bool = True
    compressor: Literal["zstd", "lz4"] = "zstd"
    """LZ4 packs and unpacks frames much faster than Zstandard does, which leaves files somewhat smaller: better for all
    else."""


SCAN: Mapping[str, ArraySpec] = {
    "frames": ArraySpec(("pattern", "row", "column"), None, 0, "counts", "detector frames as recorded", False, "lz4"),
    "detector_mask": ArraySpec(("row", "column"), "bool", False, "", "True where the pixel is unusable"),
    "valid": ArraySpec(("pattern",), "bool", False, "", "True where the pattern was recorded and is usable"),
    "source": ArraySpec(("pattern",), "string", "", "", "file (and dataset, frame) that the pattern came from"),
    "position": ArraySpec(("pattern", "axis"), "float64", np.nan, "µm", "stage coordinates (y, x), NaN where unknown"),
    "source_size": ArraySpec(
        ("pattern",), "int64", -1, "byte", "size of the file that holds the pixels, -1 where unknown", required=False
    ),
    "source_time": ArraySpec(
        ("pattern",), "int64", -1, "ns", "time since 1970 at which that file was changed, -1 unknown", required=False
    ),
    "source_checksum": ArraySpec(
        ("pattern",), "uint32", 0, "", "CRC-32C of the frame's pixels as they were read", required=False
    ),
}
"""Scan store (`*.zarr`). `pattern` counts in the specimen's row-major order ``y * nx + x``."""

REDUCED = ArraySpec(
    ("pattern", "v", "u"),
    "uint8",
    0,
    "",
    "patterns reduced to 128 × 128 by the recipe of the hash; 255 is 1.0",
)
"""Arrays `reduced/<recipe hash>` of a scan store."""

TRAINING: Mapping[str, ArraySpec] = {
    "patterns": ArraySpec(("pattern", "v", "u"), "uint8", 0, "", "simulated patterns, reduced; 255 is 1.0"),
    "experiment": ArraySpec(("pattern",), "int32", -1, "", "simulated experiment: one crystal on one detector"),
    "configuration": ArraySpec(("pattern",), "int32", -1, "", "illuminated domain; its patterns are views of it"),
}
"""Training store; the patterns of an experiment are consecutive and fill one chunk."""

RESULTS: Mapping[str, ArraySpec] = {
    "y": ArraySpec(("y",), "float64", np.nan, "", "coordinate of the rows: µm or points", required=False),
    "x": ArraySpec(("x",), "float64", np.nan, "", "coordinate of the columns: µm or points", required=False),
    "features": ArraySpec(("pattern", "latent"), "float32", np.nan, "", "encoder output"),
    "components": ArraySpec(("pattern", "component"), "float32", np.nan, "", "PCA-transformed features"),
    "explained_variance": ArraySpec(("component",), "float64", np.nan, "", "explained variance"),
    "explained_variance_ratio": ArraySpec(("component",), "float64", np.nan, "1", "explained variance ratio"),
    "k": ArraySpec(("k",), "int32", 0, "", "number of clusters K of each segmentation"),
    "n_clusters": ArraySpec(
        ("k",), "int32", 0, "", "clusters that own patterns: fewer than K where a mixture leaves some", required=False
    ),
    "score_k": ArraySpec(("score_k",), "int32", 0, "", "numbers of clusters that were scored"),
    "labels": ArraySpec(("k", "y", "x"), "int32", -1, "", "natural label, -1 without a valid pattern"),
    "centroids": ArraySpec(("k", "cluster", "component"), "float32", np.nan, "", "mean of the cluster's members"),
    "delegate": ArraySpec(("k", "cluster"), "int64", -1, "", "pattern index of the delegate, -1 padded"),
    "delegates": ArraySpec(
        ("k", "cluster", "rank"),
        "int64",
        -1,
        "",
        "pattern index of the delegate and of those that stand in for it, -1 padded",
        required=False,
    ),
    "delegates_mixed": ArraySpec(
        ("k", "cluster", "rank"),
        "int8",
        -1,
        "",
        "0 where the beam lies on one domain at a delegate, 1 on two, -1 not known",
        required=False,
    ),
    "pca_rgb": ArraySpec(("k", "y", "x", "channel"), "uint8", 0, "", "label map of the PCA labeler"),
    "direct_rgb": ArraySpec(("y", "x", "channel"), "uint8", 0, "", "direct colouring"),
    "silhouette": ArraySpec(("score_k",), "float64", np.nan, "", "mean silhouette, stratified sample"),
    "calinski_harabasz": ArraySpec(("score_k",), "float64", np.nan, "", "Calinski-Harabasz score"),
    "silhouette_draws": ArraySpec(
        ("score_k", "draw"), "float64", np.nan, "", "mean silhouette of each of the repeated fits", required=False
    ),
    "calinski_harabasz_draws": ArraySpec(
        ("score_k", "draw"), "float64", np.nan, "", "Calinski-Harabasz score of each repeated fit", required=False
    ),
    "stability": ArraySpec(
        ("score_k",), "float64", np.nan, "1", "mean adjusted Rand index of every two repeated fits", required=False
    ),
    "reconstruction_error": ArraySpec(
        ("y", "x"), "float32", np.nan, "nat", "binary cross entropy of the autoencoder, mean per pixel"
    ),
    "unexplained": ArraySpec(
        ("y", "x"),
        "float32",
        np.nan,
        "1",
        "share of the pattern that its reconstruction leaves unexplained",
        required=False,
    ),
    "grain": ArraySpec(("y", "x"), "int32", -1, "", "grain by neighbourhood, 0 the largest", required=False),
    "boundary_strength": ArraySpec(
        ("y", "x"), "float32", np.nan, "", "largest distance to a neighbour in component space", required=False
    ),
    "distance_to_centroid": ArraySpec(
        ("k", "y", "x"), "float32", np.nan, "", "distance to the centroid in component space"
    ),
}
"""Results store (`RUN/results.zarr`), which opens with `xarray.open_zarr`."""


def create(
    group: zarr.Group,
    name: str,
    spec: ArraySpec,
    shape: tuple[int, ...],
    *,
    chunks: tuple[int, ...] | None = None,
    shards: tuple[int, ...] | None = None,
    dtype: Any = None,
    attributes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> zarr.Array[Any]:
    """Create the empty array `name` in `group` as its spec says.

    Parameters
    ----------
    shape
        One length per dimension of the spec.
    chunks, shards
        Zarr chunk and shard shapes; one chunk for the whole array where not given.
    dtype
        Only for specs that leave it open.
    """
    if len(shape) != len(spec.dims):
        raise ValueError(f"array '{name}' has dimensions {spec.dims}, not the shape {shape}")
    numeric = spec.dtype != "string"
    kind: Any = str if not numeric else np.dtype(spec.dtype or dtype)
    compressors: list[Any] = []
    if numeric:
        level = {"zstd": 3, "lz4": 5}[spec.compressor]
        size = max(1, kind.itemsize)
        compressors.append(BloscCodec(cname=spec.compressor, clevel=level, shuffle="bitshuffle", typesize=size))
    compressors.append(Crc32cCodec())
    described: dict[str, Any] = {"long_name": spec.meaning, **(attributes or {})}
    if spec.units:
        described["units"] = spec.units
    return group.create_array(
        name,
        shape=shape,
        chunks=chunks or tuple(max(1, n) for n in shape),
        shards=shards,
        dtype=kind,
        fill_value=spec.fill,
        compressors=compressors,
        dimension_names=spec.dims,
        attributes=described,
        overwrite=overwrite,
    )


def check(group: zarr.Group, specs: Mapping[str, ArraySpec], *, only: Iterable[str] | None = None) -> None:
    """Compare an opened store with its specs.

    Raises
    ------
    StoreError
        A required array is missing, or one has other dimensions or another dtype, or the schema version differs.
    """
    where = str(group.store_path)
    version = group.attrs.get("laue_dask_schema")
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"{where}: schema version {version!r}, this laue-dask reads {SCHEMA_VERSION}: write the store again"
        )
    for name in only or specs:
        spec = specs[name]
        try:
            array = group.get(name)
        except Exception as error:
            # Whatever a Zarr library makes of metadata that are damaged.
            reason = " ".join(str(error).split())
            raise StoreError(f"{where}: array '{name}' is damaged ({reason}): write the store again") from error
        if array is None:
            if spec.required:
                raise StoreError(f"{where}: array '{name}' is missing: write the store again")
            continue
        if not isinstance(array, zarr.Array):
            raise StoreError(f"{where}: '{name}' is a group, an array was expected: write the store again")
        dims = tuple(array.metadata.dimension_names or ())  # type: ignore[union-attr]
        if dims != spec.dims:
            raise StoreError(f"{where}: array '{name}' has dimensions {dims}, expected {spec.dims}")
        if spec.dtype not in (None, "string") and array.dtype != np.dtype(spec.dtype):
            raise StoreError(f"{where}: array '{name}' is {array.dtype}, expected {spec.dtype}")
