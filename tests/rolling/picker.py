"""A stand-in for an endpoint picker: a gRPC server that Envoy asks, per request, which replica is to have it.

It reads the model from the body and each replica's `/metrics/epp`, and ranks replicas as the scorer for
adapters in the picker of the Gateway API Inference Extension does: a replica that runs the adapter, else one
with room for it, else one where it waits; among equals the one with the fewest requests. Two empty lists are
no news, as there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import httpx

from tests.rolling.wire import body_as_it_was, go_anywhere, go_to, read_request

METHOD = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
SCRAPE_TIMEOUT_S = 0.3
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Load:
    """One replica's page."""

    num_requests: int
    running: frozenset[str]
    waiting: frozenset[str]
    max_models: int


def read_page(page: str) -> Load:
    """`/metrics/epp`."""
    lines = [line.rpartition(" ") for line in page.splitlines() if not line.startswith("#")]
    values = {name.partition("{")[0]: (name, float(value)) for name, _, value in lines}
    labels = dict(_LABEL.findall(values["vllm:lora_requests_info"][0]))
    return Load(
        num_requests=sum(int(values[f"vllm:num_requests_{what}"][1]) for what in ("running", "waiting")),
        running=_names(labels["running_lora_adapters"]),
        waiting=_names(labels["waiting_lora_adapters"]),
        max_models=int(labels["max_lora"]),
    )


def pick(model: str, loads: Mapping[str, Load]) -> str | None:
    """The replica for a request; None if none answered. Pure."""

    def rank(replica: str) -> tuple[int, int]:
        load = loads[replica]
        if model in load.running:
            return 0, load.num_requests
        if len(load.running) + len(load.waiting) < load.max_models:
            return 1, load.num_requests
        return (2 if model in load.waiting else 3), load.num_requests

    return min(loads, key=rank, default=None)


class Picker:
    """Scrapes its replicas for every request: the page is made for that. `replicas` are `address:port`."""

    def __init__(self, replicas: Sequence[str]) -> None:
        self._replicas = replicas
        self._client = httpx.Client(timeout=SCRAPE_TIMEOUT_S)
        self._last: dict[str, Load] = {}

    def process(self, events: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """One request's conversation with Envoy."""
        body = b""
        for message in events:
            event = read_request(message)
            if event is None:
                continue
            body += event.body or b""
            if event.is_last:
                replica = pick(_model(body), self._loads())
                yield go_anywhere() if replica is None else go_to(replica)
                if event.body is not None:
                    yield from body_as_it_was(body)
                return

    def close(self) -> None:
        """Close its connections to the replicas."""
        self._client.close()

    def _loads(self) -> dict[str, Load]:
        loads = {}
        for replica in self._replicas:
            try:
                load = read_page(self._client.get(f"http://{replica}/metrics/epp").text)
            except httpx.HTTPError:
                continue
            if load.running or load.waiting or replica not in self._last:
                self._last[replica] = load
            loads[replica] = self._last[replica]
        return loads


@contextmanager
def picking(replicas: Sequence[str]) -> Iterator[int]:
    """A picker for the length of the block; the port where Envoy finds it."""
    picker = Picker(replicas)
    server = grpc.server(ThreadPoolExecutor(8))
    handler = grpc.stream_stream_rpc_method_handler(picker.process)  # bytes in, bytes out
    service, _, method = METHOD.strip("/").rpartition("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(grace=None).wait()
        picker.close()


def _names(label: str) -> frozenset[str]:
    return frozenset(filter(None, label.split(",")))


def _model(body: bytes) -> str:
    try:
        return str(json.loads(body)["model"])
    except (ValueError, KeyError, TypeError):
        return ""
