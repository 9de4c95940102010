"""The published JSON Schema and the repository's own models.yaml."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from inference_server.config.catalog import load_catalog, parse_catalog
from inference_server.config.schema import models_schema, rendered
from inference_server.errors import ConfigError

ROOT = Path(__file__).parents[2]


def valid(document: Any) -> bool:
    return jsonschema.Draft202012Validator(models_schema()).is_valid(document)


def test_the_published_schema_is_current() -> None:
    published = ROOT / "inference_server" / "config" / "models.schema.json"
    assert published.read_text() == rendered(), (
        "run: python -m inference_server.config.schema > " + published.name
    )


def test_the_schema_is_a_valid_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(rendered()))


def test_the_repositorys_models_yaml_passes_schema_and_reader() -> None:
    assert valid(yaml.safe_load((ROOT / "models.yaml").read_text()))
    catalog = load_catalog(ROOT / "models.yaml", {})
    demo = catalog.resolve("gpt-3.5-turbo")
    assert demo.name == "smollm2-135m-instruct"
    assert demo.preload
    assert demo.sha256 is not None


@pytest.mark.parametrize(
    "text",
    [
        "models: {m: {source: a/b, kv_cache: {tokens: 5}, keep_alive: -1, defaults: {temperature: 0.5}}}",
        "memory: {gpu: 90%, host: 1073741824}\nserver: {port: 8080, request_timeout: 5m}",
        "models: {m: {source: a/b, max_model_len: '${env:LEN}'}}",
        "models:\nmemory:\n",
        "",
    ],
)
def test_what_the_reader_accepts_the_schema_accepts(text: str) -> None:
    parse_catalog(text, origin="x", env={"LEN": "5"})
    assert valid(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        "models: {m: {}}",
        "models: {m: {source: a/b, quantization: q4}}",
        "models: {m: {source: a/b, colour: red}}",
        "models: {m: {source: a/b, kv_cache: {tokens: 5, bytes: 5}}}",
        "models: {'../m': {source: a/b}}",
        "models: {m: {source: a/b, defaults: {temperature: 3}}}",
        "model: {}",
        "defaults: {trust_remote_code: true}",
        "memory: {gpu: 0}",
    ],
)
def test_what_the_schema_refuses_the_reader_refuses(text: str) -> None:
    assert not valid(yaml.safe_load(text))
    with pytest.raises(ConfigError):
        parse_catalog(text, origin="x", env={})
