"""The document of `GET /openapi.json`: every route with what it takes, from the schemas that check requests.

Bodies are exact; of answers it says status, media type and, for errors, the envelope.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from inference_server import __version__
from inference_server.api.middleware.access import PUBLIC_PATHS
from inference_server.api.schemas.anthropic import CountTokensRequest, MessagesRequest
from inference_server.api.schemas.chat import ChatRequest
from inference_server.api.schemas.completions import CompletionRequest
from inference_server.api.schemas.embeddings import EmbeddingsRequest
from inference_server.api.schemas.lifecycle import LoadRequest, ModelName, Nothing, ProfileRequest
from inference_server.api.schemas.responses import ResponsesRequest
from inference_server.api.schemas.tokenize import DetokenizeRequest, TokenizeRequest

_REFS = "#/components/schemas/{name}"
_TEXT, _STREAM, _JSON = "text/plain", "text/event-stream", "application/json"


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. `answers`: media types of a 200; `takes_header`: the deadline as a header."""

    method: str
    path: str
    summary: str
    body: type | None = None
    needs_body: bool = True
    answers: tuple[str, ...] = (_JSON,)
    takes_header: bool = False
    tag: str = "operations"

    @property
    def operation_id(self) -> str:
        """Unique in the document."""
        words = self.path.strip("/").replace("{", "").replace("}", "").replace("/", "_").replace(".", "_")
        return f"{self.method}_{words}"


def _inference(prefix: str) -> list[Operation]:
    def posts(name: str, summary: str, body: type, *answers: str) -> Operation:
        return Operation(
            "post", f"{prefix}/{name}", summary, body,
            answers=answers or (_JSON,), takes_header=True, tag="inference",
        )  # fmt: skip

    return [
        posts("chat/completions", "Answer a conversation", ChatRequest, _JSON, _STREAM),
        posts("completions", "Go on with texts", CompletionRequest, _JSON, _STREAM),
        posts("responses", "Answer, in OpenAI's newer shape", ResponsesRequest, _JSON, _STREAM),
        posts("messages", "Answer, in Anthropic's shape", MessagesRequest, _JSON, _STREAM),
        posts("messages/count_tokens", "Count a message's prompt", CountTokensRequest),
        posts("embeddings", "Embed texts", EmbeddingsRequest),
        Operation("get", f"{prefix}/models", "Every model and alias", tag="inference"),
        Operation("get", f"{prefix}/models/{{model}}", "One model", tag="inference"),
    ]


def _health(path: str, summary: str) -> Operation:
    return Operation("get", path, summary)


OPERATIONS: tuple[Operation, ...] = (
    *_inference("/v1"),
    *_inference("/api/v1"),
    Operation("post", "/tokenize", "Text to token ids", TokenizeRequest, takes_header=True, tag="inference"),
    Operation(
        "post", "/detokenize", "Token ids to text", DetokenizeRequest, takes_header=True, tag="inference"
    ),
    Operation("get", "/models", "Every model's life, and the memory they share", tag="lifecycle"),
    Operation("get", "/models/sse", "The same as a stream of events", answers=(_STREAM,), tag="lifecycle"),
    Operation("post", "/models/load", "Load a model", LoadRequest, tag="lifecycle"),
    Operation("post", "/models/unload", "Unload a model", ModelName, tag="lifecycle"),
    Operation("post", "/models/sleep", "Put a model to sleep", ModelName, tag="lifecycle"),
    Operation("post", "/models/wake", "Wake a model", ModelName, tag="lifecycle"),
    Operation("post", "/models/plan", "What a request for a model would meet", ModelName, tag="lifecycle"),
    Operation(
        "post",
        "/models/profile",
        "Take a profile of a model that is in memory",
        ProfileRequest,
        answers=(_JSON, "application/gzip"),
        tag="lifecycle",
    ),
    Operation(
        "post", "/models/reload", "Read the configuration again", Nothing, needs_body=False, tag="lifecycle"
    ),
    Operation("get", "/api/ps", "What is in memory, in Ollama's shape", tag="lifecycle"),
    _health("/health/live", "Whether the process lives"),
    _health("/livez", "Whether the process lives"),
    _health("/health/ready", "Whether requests are taken"),
    _health("/readyz", "Whether requests are taken"),
    _health("/health", "Whether requests are taken"),
    _health("/health/startup", "Whether the start is over"),
    Operation("get", "/metrics", "Metrics for Prometheus", answers=(_TEXT,)),
    Operation("get", "/metrics/epp", "A few metrics for endpoint pickers", answers=(_TEXT,)),
    _health("/version", "Versions of the server and of what it runs on"),
    Operation("get", "/openapi.json", "This document"),
)


def openapi_document(operations: Sequence[Operation] = OPERATIONS) -> dict[str, Any]:
    """The document, by OpenAPI 3.1."""
    bodies = [operation.body for operation in operations if operation.body is not None]
    types = list(dict.fromkeys(bodies))
    schemas, components = msgspec.json.schema_components(types, ref_template=_REFS)
    by_type = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        body = None if operation.body is None else by_type[operation.body]
        paths.setdefault(operation.path, {})[operation.method] = _described(operation, body)
    return {
        "openapi": "3.1.0",
        "info": {"title": "HelixFlow", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def _described(operation: Operation, body: dict[str, Any] | None) -> dict[str, Any]:
    envelope = {"schema": {"$ref": _REFS.format(name="Error")}}
    described: dict[str, Any] = {
        "operationId": operation.operation_id,
        "summary": operation.summary,
        "tags": [operation.tag],
        "responses": {
            "200": {"description": "Done", "content": {kind: {} for kind in operation.answers}},
            "default": {"description": "Refused or failed", "content": {_JSON: envelope}},
        },
        "security": [] if operation.path in PUBLIC_PATHS else [{"key": []}],
    }
    if parameters := _parameters(operation):
        described["parameters"] = parameters
    if body is not None:
        described["requestBody"] = {"required": operation.needs_body, "content": {_JSON: {"schema": body}}}
    return described


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if "{model}" in operation.path:
        found.append(
            {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        )
    if operation.takes_header:
        seconds = {"type": "number", "exclusiveMinimum": 0, "maximum": 86400}
        found.append({"name": "x-request-timeout", "in": "header", "schema": seconds})
    return found
