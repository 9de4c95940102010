"""One streaming chat request, timed. It knows OpenAI's wire format, no statistics and no load pattern.

It shares its machine with the server that it measures, so it reads the stream as cheaply as it can.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

import httpx
import msgspec

_DONE = b"[DONE]"
_MAX_ERROR_CHARS = 300
OnText = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What one request gave. Times are seconds since it was sent; `error` says why it failed, if it did.

    `start_s` is on the client's clock, `latency_s` the time to the end of the answer. `gaps_s` lie between
    pieces of text. `ttft_s` is None if no text came. Token counts are the server's own `usage`; without one,
    an answer that was cut off at its longest has that length, and else pieces of text stand for tokens.
    """

    latency_s: float
    start_s: float = 0.0
    ttft_s: float | None = None
    gaps_s: tuple[float, ...] = ()
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    error: str | None = None

    @property
    def text_times_s(self) -> tuple[float, ...]:
        """When each piece of text came, on the client's clock."""
        if self.ttft_s is None:
            return ()
        return tuple(accumulate(self.gaps_s, initial=self.start_s + self.ttft_s))


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that came from a prefix cache, as far as the server tells."""
        details = self.prompt_tokens_details
        return (details.cached_tokens or 0) if details is not None else 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: object = None


class StreamFailed(Exception):  # noqa: N818 - the name says what happened
    """The answer did not come to its proper end."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class EventSplitter:
    """Cuts a byte stream into the payloads of its `data:` lines; comments and other fields are dropped."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The payloads that `data` completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


@dataclass(slots=True)
class _Answer:
    """One answer while it comes in."""

    on_text: OnText | None = None
    num_pieces: int = 0
    first_s: float | None = None
    last_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    usage: _Usage | None = None
    finish_reason: str | None = None
    done: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether the answer came to its end; some servers leave `[DONE]` out after the finish reason."""
        return self.done or self.finish_reason is not None

    def num_tokens(self, max_tokens: int) -> int:
        """How many tokens the answer has, as well as can be told."""
        if self.usage is not None:
            return self.usage.completion_tokens
        return max_tokens if self.finish_reason == "length" else self.num_pieces

    def take(self, chunk: _Chunk, now_s: float) -> None:
        if chunk.error is not None:
            raise StreamFailed(f"error event: {_message(chunk.error)}")
        if chunk.usage is not None:
            self.usage = chunk.usage
        choice = chunk.choices[0] if chunk.choices else _Choice()
        self.finish_reason = choice.finish_reason or self.finish_reason
        delta = choice.delta
        if delta is None or not (delta.content or delta.reasoning_content):
            return
        if self.first_s is None:
            self.first_s = now_s
        else:
            self.gaps_s.append(now_s - self.last_s)
        self.last_s = now_s
        self.num_pieces += 1
        if self.on_text is not None:
            self.on_text(now_s)


class LoadClient:
    """Sends prompts to one server and model. `extras` are further fields of the body.

    `system` is a message in front of every prompt, unless it is empty.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        *,
        base_url: str,
        model: str,
        output_len: int,
        extras: Mapping[str, object],
        system: str = "",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._http = http
        self._url = f"{base_url}/v1/chat/completions"
        self._output_len = output_len
        self._fields = {
            "model": model,
            "max_tokens": output_len,
            "temperature": 0.0,
            "stream": True,
            **extras,
        }
        self._system = [{"role": "system", "content": system}] if system else []
        self._clock = clock
        self._decoder = msgspec.json.Decoder(_Chunk)

    async def send(self, prompt: str, on_text: OnText | None = None) -> RequestRecord:
        """One request. Never raises for what a server may do: a failure is a record with `error`.

        `on_text` is told the time of each piece of text as it comes.
        """
        start_s = self._clock()
        try:
            answer = await self.stream(prompt, on_text)
        except (StreamFailed, httpx.HTTPError, msgspec.DecodeError) as error:
            return RequestRecord(latency_s=self._clock() - start_s, start_s=start_s, error=_describe(error))
        end_s = self._clock()
        usage = answer.usage
        return RequestRecord(
            latency_s=end_s - start_s,
            start_s=start_s,
            ttft_s=None if answer.first_s is None else answer.first_s - start_s,
            gaps_s=tuple(answer.gaps_s),
            num_input_tokens=usage.prompt_tokens if usage else 0,
            num_output_tokens=answer.num_tokens(self._output_len),
            num_cached_tokens=usage.cached_tokens if usage else 0,
        )

    async def stream(self, prompt: str, on_text: OnText | None = None) -> _Answer:
        """One request to its end.

        Raises:
            StreamFailed, httpx.HTTPError, msgspec.DecodeError: refused, broken off or unreadable.
        """
        body = {**self._fields, "messages": [*self._system, {"role": "user", "content": prompt}]}
        async with self._http.stream("POST", self._url, json=body) as response:
            if response.status_code != 200:
                content = await response.aread()
                status = response.status_code
                raise StreamFailed(f"status {status}: {_error_text(content)}", status)
            answer = _Answer(on_text)
            splitter = EventSplitter()
            async for data in response.aiter_bytes():
                self._take(answer, splitter.feed(data))
        if not answer.is_complete:
            raise StreamFailed("the stream ended before a finish reason or [DONE]")
        return answer

    def _take(self, answer: _Answer, payloads: Iterator[bytes]) -> None:
        now_s = self._clock()
        for payload in payloads:
            if payload == _DONE:
                answer.done = True
            else:
                answer.take(self._decoder.decode(payload), now_s)


def _error_text(content: bytes) -> str:
    try:
        body = msgspec.json.decode(content)
    except msgspec.DecodeError:
        return content.decode("utf-8", "replace").strip()[:_MAX_ERROR_CHARS]
    return _message(body.get("error", body) if isinstance(body, dict) else body)


def _message(error: object) -> str:
    text = error.get("message", error) if isinstance(error, dict) else error
    return str(text)[:_MAX_ERROR_CHARS]


def _describe(error: Exception) -> str:
    if isinstance(error, StreamFailed):
        return str(error)
    return f"{type(error).__name__}: {error}"[:_MAX_ERROR_CHARS]
