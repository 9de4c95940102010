"""Many streams at once on the real model: complete, counted right, and each as if it were alone."""

from __future__ import annotations

import asyncio
import random

import openai
import pytest

from tests.demo import DEMO_MODEL
from tests.server.running import RunningServer

pytestmark = pytest.mark.model
WORDS = (
    "river", "stone", "market", "window", "garden", "letter", "engine", "captain", "silver", "morning",
    "winter", "bridge",
)  # fmt: skip


def make_prompt(number: int) -> str:
    rng = random.Random(number)
    return f"[{number}] Write a story with: " + " ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 30)))


async def stream(client: openai.AsyncOpenAI, prompt: str, max_tokens: int) -> tuple[str, int]:
    text, num_tokens = "", 0
    async for chunk in await client.chat.completions.create(
        model=DEMO_MODEL,
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        max_tokens=max_tokens,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    ):
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        if chunk.usage is not None:
            num_tokens = chunk.usage.completion_tokens
    return text, num_tokens


async def compare(server: RunningServer, num_streams: int, max_tokens: int) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", timeout=300) as client:
        prompts = [make_prompt(number) for number in range(num_streams)]
        together = await asyncio.gather(*(stream(client, prompt, max_tokens) for prompt in prompts))
        alone = [await stream(client, prompt, max_tokens) for prompt in prompts]
    assert [num_tokens for _, num_tokens in together] == [max_tokens] * num_streams
    assert [text for text, _ in together] == [text for text, _ in alone]


def test_eight_streams_at_once_say_what_each_says_alone(demo_server: RunningServer) -> None:
    asyncio.run(compare(demo_server, num_streams=8, max_tokens=12))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_sixty_four_streams_at_once_say_what_each_says_alone(demo_server: RunningServer) -> None:
    asyncio.run(compare(demo_server, num_streams=64, max_tokens=32))
