"""Every example is a configuration that `helixflow serve` takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference_server.checkpoints.sources import parse_source
from inference_server.config.catalog import load_catalog
from tests.demo import REPOSITORY

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_can_be_read_and_its_sources_are_sources(path: Path) -> None:
    catalog = load_catalog(path)
    assert catalog.models
    for spec in catalog.models.values():
        parse_source(spec.source, spec.revision)


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} >= {"four-models", "gemma"}
