"""Finds out which of the optional request fields a server takes. It knows their names, no statistics."""

from __future__ import annotations

import random
import secrets

import httpx

from inference_server.bench.client import LoadClient, StreamFailed
from inference_server.bench.options import LoadOptions
from inference_server.bench.workload import make_prefix, make_prompt

_REFUSALS = (400, 422)


async def negotiate(
    http: httpx.AsyncClient, base_url: str, model: str, load: LoadOptions
) -> tuple[LoadClient, list[str]]:
    """A client that sends only the extra fields that this server takes, and notes on what it does not.

    The trial requests also load the model and warm it up. Not every server knows `ignore_eos` or
    `stream_options`, and those are to be measured too.

    Raises:
        StreamFailed, httpx.HTTPError, msgspec.DecodeError: no trial request was answered.
    """
    extras: dict[str, object] = {"stream_options": {"include_usage": True}}
    if load.ignore_eos:
        extras["ignore_eos"] = True
    label = load.label or secrets.token_hex(4)
    trial, system = f"{label}.trial", make_prefix(label, load.prefix_len, random.Random(load.seed))
    refusal: StreamFailed | None = None
    for dropped in _dropping(tuple(extras)):
        kept = {name: value for name, value in extras.items() if name not in dropped}
        client = LoadClient(
            http, base_url=base_url, model=model, output_len=load.output_len, extras=kept, system=system
        )
        try:
            answer = await client.stream(make_prompt(trial, load.input_len, random.Random(load.seed)))
        except StreamFailed as error:
            if error.status not in _REFUSALS:
                raise
            refusal = refusal or error
            continue
        return client, _notes(dropped, has_usage=answer.usage is not None)
    raise refusal or StreamFailed("no request was taken")


def _dropping(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """What to leave out, in the order of trying: nothing, each alone, all."""
    return [(), *((name,) for name in names), *([names] if len(names) > 1 else [])]


def _notes(dropped: tuple[str, ...], *, has_usage: bool) -> list[str]:
    notes = [f"the server refuses {name}; requests were sent without it" for name in dropped]
    if "ignore_eos" in dropped:
        notes.append("answers may be shorter than --output-len")
    if not has_usage:
        notes.append(
            "the server reports no usage: an answer that ends by its length has --output-len tokens, "
            "in others pieces of text are counted; input tokens are unknown"
        )
    return notes
