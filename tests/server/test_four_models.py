"""`examples/four-models.yaml`: four models, two loaded at once, any interleaving of requests answered."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from inference_server.config.catalog import load_catalog
from tests.demo import REPOSITORY
from tests.server.running import RunningServer, running_server

EXAMPLE = REPOSITORY / "examples" / "four-models.yaml"
NUM_AT_ONCE = 8
BUDGET = 1200 * 2**20
MAX_TOKENS = {"smollm2": 8, "smollm2-int8": 8, "smollm2-nf4": 2}  # the last is slow on a CPU


def ask(server: RunningServer, model: str, number: int) -> str | None:
    """What is wrong with the answer, if anything is."""
    text = f"Question {number}: what is the capital of France?"
    if model in MAX_TOKENS:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": MAX_TOKENS[model]}
        path = "/v1/chat/completions"
    else:
        body, path = {"input": text}, "/v1/embeddings"
    response = httpx.post(f"{server.url}{path}", json={"model": model, **body}, timeout=600)
    if response.status_code != 200:
        return f"{model}: {response.status_code} {response.text}"
    found = response.json()
    if model in MAX_TOKENS:
        return None if found["choices"][0]["message"]["content"] else f"{model}: no text"
    return None if len(found["data"][0]["embedding"]) == 384 else f"{model}: no vector"


def check(tmp_path: Path, num_requests: int, seed: int) -> None:
    """A random interleaving over all models, some at once; each model at least once."""
    config = tmp_path / "models.yaml"
    config.write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    names = list(load_catalog(EXAMPLE).models)
    order = [names[number % len(names)] for number in range(num_requests)]
    random.Random(seed).shuffle(order)
    with running_server(config) as server, ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        problems = list(pool.map(lambda numbered: ask(server, numbered[1], numbered[0]), enumerate(order)))
        assert [problem for problem in problems if problem is not None] == []
        models = server.client.get("/models").json()["data"]
        assert sum(model["memory_bytes"] for model in models) <= BUDGET  # those asleep keep their process
        assert sum(model["status"] == "loaded" for model in models) in (1, 2)  # three are more than it holds
        assert not Counter(line for line in server.log.splitlines() if "Traceback" in line)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(1800)
def test_two_hundred_requests_over_four_models_are_all_answered(tmp_path: Path) -> None:
    check(tmp_path, num_requests=200, seed=1)
