"""`/v1/embeddings`: OpenAI's request and answer, with vLLM's `truncate_prompt_tokens`."""

from __future__ import annotations

import asyncio
import binascii
import struct
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from inference_server.api.schemas.sampling import MAX_TOKEN_ID, Positive, Seconds
from inference_server.errors import InvalidRequest
from inference_server.generation.embeddings import EmbeddingJob, Embeddings

MAX_INPUTS = 2048  # OpenAI's
VECTORS_PER_TURN = 64


class EmbeddingsRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body: one input or a list of them, each text or token ids."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    input: Any
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Positive | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    timeout: Seconds | None = None
    keep_alive: float | str | None = None

    # Accepted without effect (docs/openai-compatibility.md).
    user: str | None = None

    def job(self, request_id: str) -> EmbeddingJob:
        """What the embedding service is asked for.

        Raises:
            InvalidRequest: `input` is none of what it may be, or empty, or has too many entries.
        """
        cut = self.truncate_prompt_tokens
        if cut == 0:
            raise InvalidRequest(
                "truncate_prompt_tokens must be at least 1, or -1 for the model's limit",
                param="truncate_prompt_tokens",
            )
        return EmbeddingJob(
            request_id=request_id,
            model=self.model,
            inputs=_inputs(self.input),
            truncates=cut is not None,
            max_tokens=None if cut == -1 else cut,
            dimensions=self.dimensions,
        )


async def embeddings_answer(model: str, answer: Embeddings, encoding_format: str | None) -> bytes:
    """The answer. Others on the event loop have their turns between its vectors: there may be thousands."""
    written = _base64 if encoding_format == "base64" else _floats
    data: list[bytes] = []
    for index, vector in enumerate(answer.vectors):
        data.append(b'{"object":"embedding","index":%d,"embedding":%b}' % (index, written(vector)))
        if index % VECTORS_PER_TURN == VECTORS_PER_TURN - 1:
            await asyncio.sleep(0)
    counts = {"prompt_tokens": answer.usage.prompt_tokens, "total_tokens": answer.usage.prompt_tokens}
    return b'{"object":"list","data":[%b],"model":%b,"usage":%b}' % (
        b",".join(data),
        msgspec.json.encode(model),
        msgspec.json.encode(counts),
    )


def _floats(vector: bytes) -> bytes:
    return msgspec.json.encode(struct.unpack(f"<{len(vector) // 4}f", vector))


def _base64(vector: bytes) -> bytes:
    return b'"%b"' % binascii.b2a_base64(vector, newline=False)


def _inputs(value: Any) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(value, str) or _is_token_ids(value):
        return (_one(value),)
    if not isinstance(value, list) or not value:
        raise _bad_input()
    if len(value) > MAX_INPUTS:
        raise InvalidRequest(f"input: at most {MAX_INPUTS} inputs per request", param="input")
    return tuple([_one(entry) for entry in value])


def _one(value: Any) -> str | tuple[int, ...]:
    if isinstance(value, str) and value:
        return value
    if _is_token_ids(value):
        return tuple(value)
    raise _bad_input()


def _is_token_ids(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(token) is int and 0 <= token <= MAX_TOKEN_ID for token in value)
    )


def _bad_input() -> InvalidRequest:
    return InvalidRequest(
        "input must be a string, a list of token ids, or a list of either, and none of them empty",
        param="input",
    )
