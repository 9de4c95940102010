"""The application over a fake model, and a client to it, both in this process."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.types import Message, Scope

from inference_server.access.configured import configured_keys
from inference_server.access.gate import Gate
from inference_server.api.application import build_application
from inference_server.config.catalog import Catalog
from inference_server.model_manager.reload import Reloader
from inference_server.tracing.tracer import NoTracer
from tests.generation.fakes import House

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"model": "demo", "prompt": "hi"}


class Server(House):
    """A house with its HTTP surface. Use inside one event loop."""

    def __init__(
        self, tmp_path: Path, *, clock: Callable[[], float] = time.monotonic, **options: Any
    ) -> None:
        super().__init__(tmp_path, **options)
        self.application: Starlette = build_application(
            settings=self.settings,
            manager=self.manager,
            services=self.services,
            metrics=self.metrics,
            reload=Reloader(self.read_catalog, self.manager.reload).reload,
            gate=Gate(configured_keys(self.settings, self.catalog)),
            tracer=NoTracer(),
            clock=clock,
        )
        transport = httpx.ASGITransport(self.application, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://localhost:8000")

    def read_catalog(self) -> Catalog:
        """What a reload finds; a test may put another one here."""
        return self.catalog

    def hold_files(self) -> tuple[asyncio.Event, asyncio.Event]:
        """Models' files come only once the second event is set; the first says that they are waited for."""
        prepare, due, may_come = self.launcher.prepare, asyncio.Event(), asyncio.Event()

        async def slowly(*arguments: Any) -> Any:
            due.set()
            await may_come.wait()
            return await prepare(*arguments)

        self.launcher.prepare = slowly  # type: ignore[method-assign]
        return due, may_come

    async def chat(self, *, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        return await self.client.post("/v1/chat/completions", json={**CHAT, **fields}, headers=headers)

    async def complete(self, **fields: Any) -> httpx.Response:
        return await self.client.post("/v1/completions", json={**COMPLETION, **fields})

    @asynccontextmanager
    async def connected(
        self, path: str, body: object, headers: dict[str, str] | None = None, method: str = "POST"
    ) -> AsyncIterator[Connection]:
        """One request over raw ASGI: what has been sent can be looked at, and the client can leave."""
        connection = Connection(path, json.dumps(body).encode(), headers or {}, method)
        task = asyncio.create_task(
            self.application(connection.scope, connection.receive, connection.send)  # type: ignore[arg-type]
        )
        connection.task = task
        try:
            yield connection
        finally:
            connection.leave()
            await asyncio.gather(task, return_exceptions=True)


class Connection:
    """The client's end."""

    def __init__(self, path: str, body: bytes, headers: dict[str, str], method: str = "POST") -> None:
        fields = {"host": "localhost", "content-type": "application/json", **headers}
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        self.sent: list[Message] = []
        self.task: asyncio.Task[None] | None = None
        self.changed = asyncio.Event()
        self.may_send = asyncio.Event()
        self.may_send.set()
        self._gone = asyncio.Event()
        self._body: list[bytes] = [body]

    async def receive(self) -> Message:
        if self._body:
            return {"type": "http.request", "body": self._body.pop(0), "more_body": bool(self._body)}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.may_send.wait()
        self.sent.append(message)
        self.changed.set()

    def leave(self) -> None:
        self._gone.set()

    @property
    def status(self) -> int | None:
        return self.sent[0]["status"] if self.sent else None

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent[1:]).decode()

    async def until(self, text: str) -> None:
        """Wait for `text` to have been sent."""
        async with asyncio.timeout(10):
            while text not in self.text:
                self.changed.clear()
                await self.changed.wait()


def events(text: str) -> list[Any]:
    """The data of a stream's events; "[DONE]" as it is."""
    data = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """One test's event loop."""
    asyncio.run(scenario)
