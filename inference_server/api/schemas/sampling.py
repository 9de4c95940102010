"""Fields that chat and completions share, their ranges, and what is known but not supported yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from inference_server.api.schemas.formats import FormatFields
from inference_server.errors import InvalidRequest, UnsupportedParameter
from inference_server.generation.requests import Prompt, SamplingOptions, TextRequest

MAX_LOGPROBS = 20
MAX_BIASES = 1024
MAX_STOPS = 16  # OpenAI's is 4; editors and evaluation harnesses send more to other servers
MAX_TOKEN_ID = 2**31 - 1
Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
NotNegative = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
TopP = Annotated[float, Meta(gt=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Meta(ge=0.01, le=2)]  # far smaller ones overflow logits
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
StopString = Annotated[str, Meta(min_length=1, max_length=1024)]
StopStringList = Annotated[list[StopString], Meta(max_length=MAX_STOPS)]
TokenId = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]
TokenIdList = Annotated[list[TokenId], Meta(max_length=1024)]
AllowedTokenIds = Annotated[list[TokenId], Meta(min_length=1, max_length=1024)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
LogitBias = Annotated[dict[TokenId, Bias], Meta(max_length=MAX_BIASES)]
NumLogprobs = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)]
NumAnswers = Annotated[int, Meta(ge=1, le=8)]
Seconds = Annotated[float, Meta(gt=0, le=86400)]


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """OpenAI's `stream_options`. Chunks are never padded, so `include_obfuscation` changes nothing."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class GenerationFields(FormatFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters of both endpoints. A null means the default."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    max_tokens: Positive | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    min_tokens: NotNegative | None = None
    stop: StopString | StopStringList | None = None
    stop_token_ids: TokenIdList | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: NumAnswers | None = None
    logit_bias: LogitBias | None = None
    allowed_token_ids: AllowedTokenIds | None = None
    prompt_logprobs: NumLogprobs | None = None
    cache_salt: Annotated[str, Meta(max_length=512)] | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    timeout: Seconds | None = None
    keep_alive: float | str | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None

    # Accepted without effect (docs/openai-compatibility.md).
    user: str | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None

    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def includes_usage(self) -> bool:
        """Whether a stream is to end with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling_options(self) -> SamplingOptions:
        """What the generation service needs of these."""
        return SamplingOptions(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=None if self.top_k is None else max(0, self.top_k),
            min_p=self.min_p,
            seed=None if self.seed is None else self.seed % 2**64,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            min_tokens=self.min_tokens or 0,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            logit_bias=tuple((self.logit_bias or {}).items()),
            allowed_token_ids=tuple(dict.fromkeys(self.allowed_token_ids or ())),
            prompt_logprobs=self.prompt_logprobs,
            grammar=self.grammar(),
        )

    def text_request(self, request_id: str, prompts: tuple[Prompt, ...]) -> TextRequest:
        """What the generation service is asked for these prompts."""
        return TextRequest(
            request_id=request_id,
            model=self.model,
            prompts=prompts,
            sampling=self.sampling_options(),
            num_answers=self.n or 1,
            stop=self.stop_strings(),
            include_stop=bool(self.include_stop_str_in_output),
            skip_special_tokens=self.skip_special_tokens is not False,
            cache_salt=self.cache_salt or "",
            priority=self.priority or 0,
        )

    def check(self) -> None:
        """What a schema cannot say.

        Raises:
            UnsupportedParameter: a known field is used in a way that is not supported yet.
            InvalidRequest: fields contradict each other.
        """
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options needs stream: true", param="stream_options")
        if self.prompt_logprobs is not None and self.stream:
            raise InvalidRequest(
                "prompt_logprobs come with a whole answer only; leave out stream", param="prompt_logprobs"
            )


def refuse(used: bool, name: str, what: str = "this parameter") -> None:
    """Raise UnsupportedParameter for `name` if it is used."""
    if used:
        raise UnsupportedParameter(f"{name}: {what} is not supported by this server yet", param=name)


def refuse_fields(value: msgspec.Struct, names: Sequence[str], where: str) -> None:
    """Raise UnsupportedParameter for the first of these fields that is set; `where` is the value's place."""
    for name in names:
        refuse(getattr(value, name) is not None, f"{where}.{name}")
