"""A small synchronous client of a running server for the commands. It knows HTTP, no terminal."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import httpx

from inference_server import __version__
from inference_server.cli.failures import ServerError

_TIMEOUT = httpx.Timeout(60.0, connect=5.0)  # the server sends something at least every 15 s
_PATIENT = httpx.Timeout(60.0, connect=5.0, read=None)  # a load takes what it takes
NO_SERVER = "no_server"  # the code of the error when nothing listens


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of an answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Notice:
    """What the server says while there is no text yet, such as "loading model … 43%"."""

    text: str


@dataclass(frozen=True, slots=True)
class End:
    """The answer is complete; `reason` as OpenAI calls it (stop, length)."""

    reason: str


Event = Text | Notice | End


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """What `/models` tells: an object per model, and one per device of the memory budget."""

    models: Sequence[Mapping[str, Any]]
    memory: Sequence[Mapping[str, Any]]


class ServerClient:
    """Talks to one server; owns its connections. Use as a context manager."""

    def __init__(
        self, base_url: str, api_key: str | None, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._base_url = normalised(base_url)
        headers = {"User-Agent": f"helixflow/{__version__}"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        self._http = httpx.Client(headers=headers, timeout=_TIMEOUT, transport=transport)

    def __enter__(self) -> ServerClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def models(self) -> list[dict[str, Any]]:
        """The server's `/v1/models`.

        Raises:
            ServerError: no server, no permission, or no such answer.
        """
        return self._entries("/v1/models")

    def lifecycle(self) -> Lifecycle:
        """The server's `/models`: every model's life, and the memory they share.

        Raises:
            ServerError: no server, no permission, or no such answer.
        """
        body = self._call("GET", "/models")
        return Lifecycle(_dicts(body.get("data")), _dicts(body.get("memory")))

    def load(self, model: str, keep_alive: str | None) -> None:
        """Return when the model is ready.

        Raises:
            ServerError: it cannot be loaded, or there is no such server.
        """
        body = {"model": model} | ({} if keep_alive is None else {"keep_alive": keep_alive})
        self._call("POST", "/models/load", body)

    def unload(self, model: str) -> None:
        """Return when the model's memory is free; raises like `load`."""
        self._call("POST", "/models/unload", {"model": model})

    def forecast(self, model: str) -> Mapping[str, Any]:
        """What a request for `model` would meet there now: its plan, and who would leave for it.

        Raises:
            ServerError: no such model or server, or no permission.
        """
        return self._call("POST", "/models/plan", {"model": model})

    def profile(self, model: str, seconds: float, kind: str, out: BinaryIO) -> None:
        """Write a profile of a model that is in memory there; it takes `seconds` and a little more.

        Raises:
            ServerError: no such model or server, no permission, or it cannot be profiled now.
        """
        body = {"model": model, "seconds": seconds, "kind": kind}
        address = f"{self._base_url}/models/profile"
        try:
            with self._http.stream("POST", address, json=body, timeout=_PATIENT) as response:
                if response.is_error:
                    response.read()
                    _refuse_errors(response)
                out.writelines(response.iter_bytes())
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def first_model(self) -> str:
        """A loaded model rather than one that has to be loaded; never an alias.

        Raises:
            ServerError: there is none.
        """
        models = [entry for entry in self.models() if isinstance(entry.get("id"), str)]
        ranked = sorted(models, key=lambda m: (m.get("parent") is not None, m.get("status") != "loaded"))
        if not ranked:
            raise ServerError("the server has no models; add one to its models.yaml")
        return str(ranked[0]["id"])

    def chat(
        self, model: str, messages: Sequence[Mapping[str, str]], options: Mapping[str, object]
    ) -> Generator[Event]:
        """Streams one answer. Closing the iterator drops the connection, which ends the work on the server.

        Raises:
            ServerError: before or within the answer.
        """
        body = {"model": model, "messages": list(messages), "stream": True, **options}
        try:
            with self._http.stream("POST", f"{self._base_url}/v1/chat/completions", json=body) as response:
                if response.is_error:
                    response.read()
                    _refuse_errors(response)
                yield from _events(response.iter_lines())
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _entries(self, path: str) -> list[dict[str, Any]]:
        data = self._call("GET", path).get("data")
        if not isinstance(data, list):
            raise ServerError(f"{self._base_url} does not answer like an OpenAI-compatible server")
        return _dicts(data)

    def _call(self, method: str, path: str, body: object = None) -> Mapping[str, Any]:
        try:
            response = self._http.request(
                method, f"{self._base_url}{path}", json=body, timeout=_TIMEOUT if body is None else _PATIENT
            )
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        _refuse_errors(response)
        return _json(response.content)

    def _unreachable(self, error: Exception) -> ServerError:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return ServerError(
                f"no server answers at {self._base_url}; start one with `helixflow serve`, "
                "or name another with --base-url",
                NO_SERVER,
            )
        if isinstance(error, httpx.TimeoutException):
            return ServerError(f"{self._base_url} has stopped answering")
        return ServerError(f"the connection to {self._base_url} failed: {error or type(error).__name__}")


def _dicts(value: object) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def normalised(base_url: str) -> str:
    """The address without a trailing slash or `/v1`.

    Raises:
        ServerError: it is no http(s) address.
    """
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise ServerError(f"--base-url: expected an address such as http://127.0.0.1:8000, got {base_url!r}")
    return base_url.rstrip("/").removesuffix("/v1").rstrip("/")


def _events(lines: Iterator[str]) -> Iterator[Event]:
    """Server-sent events to events of an answer; ends with `[DONE]` or raises."""
    reason = "stop"
    for line in lines:
        if line.startswith(":"):
            if notice := line[1:].strip():
                yield Notice(notice)
        elif line.startswith("data:"):
            data = line[5:].strip()
            if data == "[DONE]":
                yield End(reason)
                return
            text, found = _chunk(_json(data.encode()))
            reason = found or reason
            if text:
                yield Text(text)
    raise ServerError("the server ended the answer before it was complete")


def _chunk(chunk: Mapping[str, Any]) -> tuple[str, str | None]:
    """(new text, finish reason) of one chunk."""
    if "error" in chunk:
        raise _failure(chunk, "the server reported an error")
    choices = chunk.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        return "", None
    delta = choice.get("delta")
    text = delta.get("content") if isinstance(delta, dict) else None
    return text if isinstance(text, str) else "", choice.get("finish_reason")


def _refuse_errors(response: httpx.Response) -> None:
    if response.is_success:
        return
    if response.status_code == 401:
        raise ServerError(
            "the server wants a valid API key; set HELIXFLOW_API_KEY or give --api-key", "invalid_api_key"
        )
    try:
        body = _json(response.content)
    except ServerError:
        body = {}
    raise _failure(body, f"the server answered with status {response.status_code}")


def _failure(body: Mapping[str, Any], otherwise: str) -> ServerError:
    error = body.get("error")
    details = error if isinstance(error, dict) else {}
    return ServerError(str(details.get("message") or otherwise), str(details.get("code") or ""))


def _json(data: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ServerError("the server's answer is not a JSON object")
    return value
