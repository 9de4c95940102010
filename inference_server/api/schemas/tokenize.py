"""`/tokenize` and `/detokenize`: vLLM's requests and answers."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from inference_server.api.schemas.chat import MAX_MESSAGES, ChatTemplateKwargs, Message, chat_prompt
from inference_server.api.schemas.sampling import Seconds, TokenId
from inference_server.errors import InvalidRequest
from inference_server.generation.requests import ChatPrompt, TextPrompt
from inference_server.generation.tokenization import Tokens

ModelName = Annotated[str, Meta(min_length=1, max_length=512)]


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Either a `prompt` or `messages`; `add_special_tokens` is true for the one and false for the other."""

    model: ModelName
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: ChatTemplateKwargs | None = None
    return_token_strs: bool | None = None
    timeout: Seconds | None = None

    def wanted(self) -> ChatPrompt | TextPrompt:
        """What is to be encoded.

        Raises:
            InvalidRequest: there is not exactly one of `prompt` and `messages`, or fields contradict.
            UnsupportedParameter: a message has parts that are not text.
        """
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("send either prompt or messages", param="prompt")
        if self.messages is None:
            self._refuse_chat_fields()
            return TextPrompt(self.prompt or "", self.add_special_tokens is not False)
        prompt = chat_prompt(
            self.messages,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            template_kwargs=self.chat_template_kwargs,
        )
        return msgspec.structs.replace(prompt, add_special_tokens=bool(self.add_special_tokens))

    def _refuse_chat_fields(self) -> None:
        for name in ("add_generation_prompt", "continue_final_message", "chat_template_kwargs"):
            if getattr(self, name) is not None:
                raise InvalidRequest(f"{name} goes with messages, not with prompt", param=name)


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Token ids to be written out, special ones included."""

    model: ModelName
    tokens: list[TokenId]
    timeout: Seconds | None = None


def tokenized(tokens: Tokens, *, with_strings: bool) -> bytes:
    """The answer to a `TokenizeRequest`."""
    return msgspec.json.encode(
        {
            "count": len(tokens.token_ids),
            "max_model_len": tokens.max_model_len,
            "tokens": tokens.token_ids,
            "token_strs": tokens.spellings if with_strings else None,
        }
    )


def detokenized(text: str) -> bytes:
    """The answer to a `DetokenizeRequest`."""
    return msgspec.json.encode({"prompt": text})
