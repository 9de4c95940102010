"""The document of the interface: valid, whole, and a real server lives up to it under made-up requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest import SkipTest

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from openapi_spec_validator import validate
from schemathesis.config import SchemathesisConfig
from schemathesis.generation import GenerationMode

from inference_server.api.application import _routes
from inference_server.api.openapi import OPERATIONS, Operation, openapi_document
from tests.server.running import RunningServer, running_server

CONFIG = """
models:
  demo: {source: 'scripted:?output_tokens=4', aliases: [gpt], preload: true}
  embedder: {source: scripted, task: embed}
"""
NEVER_ENDS = {"/models/sse"}
DOCUMENT = schemathesis.openapi.from_dict(
    openapi_document(), config=SchemathesisConfig.from_dict({"generation": {"mode": "all"}})
)
TRIED = [operation for operation in OPERATIONS if operation.path not in NEVER_ENDS]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    config = tmp_path_factory.mktemp("openapi") / "models.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    with running_server(config) as running:
        yield running


def test_the_document_is_valid_and_names_every_route(server: RunningServer) -> None:
    document = server.client.get("/openapi.json").json()
    validate(document)
    routed = {route.path.replace("{name:path}", "{model}") for route in _routes()}
    assert set(document["paths"]) == routed
    for route in _routes():
        described = document["paths"][route.path.replace("{name:path}", "{model}")]
        assert {method.lower() for method in route.methods or ()} - {"head"} == set(described)
    identifiers = [
        entry["operationId"] for methods in document["paths"].values() for entry in methods.values()
    ]
    assert len(set(identifiers)) == len(identifiers)


def tried(
    server: RunningServer, operation: Operation, mode: GenerationMode, num_examples: int
) -> Counter[int]:
    """How many made-up requests were answered with a 2xx, a 4xx and so on."""
    api = DOCUMENT[operation.path][operation.method.upper()]
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=num_examples,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(case=api.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        response = case.call(base_url=server.url, timeout=60)
        statuses[response.status_code // 100] += 1
        assert response.status_code < 500, response.text
        if response.status_code >= 400:
            error = response.json()["error"]
            assert error["message"]
            assert error["type"].endswith("_error")

    try:
        ask()
    except (Unsatisfiable, SkipTest):
        assert mode is GenerationMode.NEGATIVE  # a route without a body or parameters takes anything
    return statuses


def check(server: RunningServer, operation: Operation, num_examples: int) -> None:
    """Requests that fit the schema and that do not: never a 5xx, and refusals are in an envelope."""
    right = tried(server, operation, GenerationMode.POSITIVE, num_examples)
    wrong = tried(server, operation, GenerationMode.NEGATIVE, num_examples)
    assert right.total() > 0
    if operation.needs_body and operation.body is not None:
        assert wrong[4] > 0
    assert server.client.get("/health/live").status_code == 200


BY_NAME = pytest.mark.parametrize("operation", TRIED, ids=lambda operation: operation.operation_id)


@BY_NAME
def test_made_up_requests_are_answered_or_refused(server: RunningServer, operation: Operation) -> None:
    check(server, operation, 4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@BY_NAME
def test_two_hundred_made_up_requests_are_answered_or_refused(
    server: RunningServer, operation: Operation
) -> None:
    check(server, operation, 100)


def test_the_server_is_as_before(server: RunningServer, tmp_path: Path) -> None:
    assert server.chat("hi", model="gpt").status_code == 200
    assert "Traceback" not in server.log
