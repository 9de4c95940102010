"""Every exception has a row in the status table, and the envelope is OpenAI's."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from inference_server import errors
from inference_server.api.errors import STATUS, error_response, status_of

SCOPE = {"type": "http", "path": "/v1/chat/completions"}


def tree(root: type[errors.HelixFlowError]) -> Iterator[type[errors.HelixFlowError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


@pytest.mark.parametrize("kind", list(tree(errors.HelixFlowError)))
def test_every_class_of_the_tree_has_a_row(kind: type[errors.HelixFlowError]) -> None:
    status, openai_type = STATUS[kind]
    assert 400 <= status < 600
    assert openai_type
    assert kind.code


def test_no_row_is_left_over() -> None:
    assert set(STATUS) == set(tree(errors.HelixFlowError))


@pytest.mark.parametrize("kind", list(tree(errors.HelixFlowError)))
def test_the_envelope_names_message_type_param_and_code(kind: type[errors.HelixFlowError]) -> None:
    response = error_response(kind("what happened", param="field"), SCOPE)
    assert response.status_code == status_of(kind("x"))
    assert msgspec.json.decode(response.body) == {
        "error": {"message": "what happened", "type": STATUS[kind][1], "param": "field", "code": kind.code}
    }


def test_overload_and_unavailability_say_when_to_come_again() -> None:
    assert error_response(errors.QueueFull("full", retry_after_s=2.2), SCOPE).headers["retry-after"] == "3"
    assert int(error_response(errors.ShuttingDown("bye"), SCOPE).headers["retry-after"]) >= 1
    assert "retry-after" not in error_response(errors.InvalidRequest("no"), SCOPE).headers


def test_a_missing_key_is_challenged() -> None:
    assert error_response(errors.Unauthenticated("key?"), SCOPE).headers["www-authenticate"] == "Bearer"
