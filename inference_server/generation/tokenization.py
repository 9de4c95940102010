"""Text to token ids and back for clients, with a model's own tokenizer; the model is not loaded for it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from inference_server.checkpoints.facts import model_facts
from inference_server.errors import InvalidRequest
from inference_server.generation.deadline import deadline
from inference_server.generation.prompt import PromptTemplate
from inference_server.generation.requests import ChatPrompt, TextPrompt
from inference_server.generation.templates import Templates
from inference_server.model_manager.manager import ModelManager


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt's token ids. `spellings`: each as the vocabulary writes it. `max_model_len` in tokens."""

    token_ids: tuple[int, ...]
    spellings: tuple[str, ...]
    max_model_len: int


class Tokenization:
    """Owner: the event loop. Long texts are encoded in the templates' threads."""

    def __init__(self, manager: ModelManager, templates: Templates, max_timeout_s: float) -> None:
        self._manager = manager
        self._templates = templates
        self._max_timeout_s = max_timeout_s

    async def encode(
        self, model: str, prompt: ChatPrompt | TextPrompt, timeout_s: float | None, *, with_spellings: bool
    ) -> Tokens:
        """The tokens that a request with this prompt would have.

        Raises:
            UnknownModel: no such model.
            InvalidRequest, UnsupportedParameter: the model's template cannot write the messages.
            ModelLoadFailed: the model's files cannot be had.
            DeadlineExceeded: they did not come in time.
        """
        async with self._limit(timeout_s):
            folder = await self._manager.folder(model)
            template = await self._templates.get(folder)
            token_ids = await self._templates.encode(template, prompt)
            spellings = await self._templates.spellings(template, token_ids) if with_spellings else ()
        return Tokens(token_ids, spellings, self._max_model_len(model, folder))

    async def decode(self, model: str, token_ids: tuple[int, ...], timeout_s: float | None) -> str:
        """The text of token ids, special ones included.

        Raises:
            InvalidRequest: the model has no such token.
            UnknownModel, ModelLoadFailed, DeadlineExceeded: as `encode`.
        """
        async with self._limit(timeout_s):
            template = await self._templates.get(await self._manager.folder(model))
            _check_vocabulary(token_ids, template)
            return await self._templates.decode(template, token_ids)

    def _limit(self, timeout_s: float | None) -> AbstractAsyncContextManager[None]:
        limit_s = min(timeout_s or self._max_timeout_s, self._max_timeout_s)
        return deadline(limit_s, limit_s)

    def _max_model_len(self, model: str, folder: str) -> int:
        status = self._manager.status(model)
        if status.plan is not None:
            return status.plan.max_model_len
        limit = model_facts(Path(folder)).max_position_embeddings
        return min(status.spec.max_model_len or limit, limit)


def _check_vocabulary(token_ids: tuple[int, ...], template: PromptTemplate) -> None:
    size = template.tokenizer.get_vocab_size(with_added_tokens=True)
    if token_ids and max(token_ids) >= size:
        raise InvalidRequest(
            f"tokens: {max(token_ids)} is none of this model's, which has ids 0 to {size - 1}", param="tokens"
        )
