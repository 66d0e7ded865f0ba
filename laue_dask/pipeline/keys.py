"""What each stage of a run depends on: its cache key, and the values behind it in words.

A stage's output is valid exactly when the hash of its inputs' keys, its parameters and its code version matches. What
is hashed never changes its name: options may be renamed and versions released, and the runs that are there stay valid.
"""

from collections.abc import Mapping
from typing import Any

from laue_dask.config import ClusteringConfig, EncoderConfig, Model, Recipe
from laue_dask.features.extractors import Extractor
from laue_dask.former_names import former
from laue_dask.pipeline.reuse import STAGES_ATTRIBUTE, Stage, recorded, stage_key
from laue_dask.pipeline.stages.scoring import SCORE_OPTIONS
from laue_dask.pipeline.stages.segmentation import CLUSTERING_OPTIONS
from laue_dask.pipeline.versions import FIRST_RELEASE

_NETWORK_OPTIONS = ("batch_size", "precision")


def ingested(scan: str) -> Stage:
    """Describe the scan store as a stage, whose key is that of its content."""
    return Stage("ingest", scan, {"key of the frames": scan})


def reduced(scan: str, recipe: Recipe) -> Stage:
    """Describe the stage of the reduced patterns of a scan by a recipe."""
    return Stage("reduce", stage_key("reduced", scan, recipe.digest()), of_recipe(recipe.model_dump()), ("ingest",))


def of_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe, by their names in the configuration."""
    return {f"recipe.{name}": value for name, value in recipe.items()}


def features(scan: str, recipe: Recipe, config: EncoderConfig, extractor: Extractor) -> Stage:
    """Describe the stage of the features of a scan's reduced patterns."""
    values: dict[str, Any] = {"encoder.extractor": config.extractor}
    if config.extractor == "network":
        values |= _of(config, "encoder", _NETWORK_OPTIONS) | {
            "encoder.weights": f"{config.weights} ({extractor.digest[:8]})"
        }
    return Stage("encode", stage_key("features", scan, recipe.digest(), extractor.digest), values, ("reduce",))


def components(*encoded: str) -> Stage:
    """Describe the stage of the components of a scan, or of several scans together, by the keys of their features."""
    return Stage("components", stage_key("components", *encoded), {"scans together": len(encoded)}, ("encode",))


def scores(components: str, m_pca: int, config: ClusteringConfig) -> Stage:
    """Describe the stage of the scores over K; the K that are asked for are scored as well."""
    first, last = config.score_k
    beyond = sorted(k for k in set(config.k) if not first <= k <= last)
    values = _of(config, "clustering", SCORE_OPTIONS) | {"clustering.k beyond score_k": beyond}
    return _of_components("scores", "scores", components, m_pca, values)


def segments(components: str, m_pca: int, config: ClusteringConfig) -> Stage:
    """Describe the stage of the segmentations, whichever their K."""
    return _of_components("segment", "segments", components, m_pca, _of(config, "clustering", CLUSTERING_OPTIONS))


def grains(components: str, m_pca: int) -> Stage:
    """Describe the stage of the grains and the strength of their boundaries."""
    return _of_components("grains", "grains", components, m_pca, {})


def quality(encoded: str, of: str) -> Stage:
    """Describe the stage that says how well the autoencoder knows the patterns."""
    return Stage("quality", stage_key("quality", encoded, of, FIRST_RELEASE), {"quality": of}, ("encode",))


def scores_hold(attributes: Mapping[str, Any], components: str, m_pca: int, config: ClusteringConfig) -> bool:
    """Return whether the scores of results with these attributes, of a run with this clustering, are those of today's
    code.
    """
    try:
        beyond = attributes[STAGES_ATTRIBUTE]["scores"]["of"]["clustering.k beyond score_k"]
    except (KeyError, TypeError):
        return False
    # Another K may have been asked for since, without the scores being made again.
    asked = config.model_copy(update={"k": tuple(beyond)})
    return recorded(attributes, scores(components, m_pca, asked))


def _of_components(name: str, version: str, components: str, m_pca: int, values: dict[str, Any]) -> Stage:
    values = {"M_PCA": m_pca, **values}
    hashed = sorted(_hashed({"laue_dask": FIRST_RELEASE, **values}).items())
    return Stage(name, stage_key(version, components, *hashed), values, ("components",))


def _hashed(values: dict[str, Any]) -> dict[str, Any]:
    """Values under the names that they always had in hashes."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        [(name, value)] = former(section, {name: value}).items()
        found[f"{section}.{name}" if section else name] = value
    return found


def _of(config: Model, section: str, names: tuple[str, ...]) -> dict[str, Any]:
    return {f"{section}.{name}": getattr(config, name) for name in names}
