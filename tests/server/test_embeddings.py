"""Embeddings of the real small model over HTTP, through OpenAI's client, against plain transformers."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from tests.demo import embedding_folder
from tests.server.running import RunningServer, running_server

pytestmark = pytest.mark.model
CONFIG = """
models:
  minilm:
    source: {folder}
    aliases: [text-embedding-3-small]
"""
SENTENCES = (
    "A cat sleeps on the sofa.",
    "The kitten is napping on the couch.",
    "Interest rates rose by half a point.",
    "wORDS in mixed Case, and ünïcode: 東京",
    "word " * 200,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    config = tmp_path_factory.mktemp("embeddings") / "models.yaml"
    config.write_text(CONFIG.format(folder=embedding_folder()), encoding="utf-8")
    with running_server(config) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0, timeout=120)


def expected(sentences: tuple[str, ...]) -> list[list[float]]:
    """Mean pooling and unit length, one sentence at a time."""
    folder = embedding_folder()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    vectors = []
    for sentence in sentences:
        encoded = tokenizer(sentence, return_tensors="pt")
        with torch.inference_mode():
            states = model(**encoded).last_hidden_state[0]
        vectors.append(torch.nn.functional.normalize(states.mean(dim=0), dim=0).tolist())
    return vectors


def dot(left: list[float], right: list[float]) -> float:
    return sum(one * other for one, other in zip(left, right, strict=True))


def test_the_sdk_gets_what_transformers_computes(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="text-embedding-3-small", input=list(SENTENCES))
    vectors = [entry.embedding for entry in answer.data]
    for vector, right in zip(vectors, expected(SENTENCES), strict=True):
        assert dot(vector, right) == pytest.approx(1, abs=1e-5)
    assert dot(vectors[0], vectors[1]) > 0.5 > 0.2 > dot(vectors[0], vectors[2])
    assert answer.model == "text-embedding-3-small"
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > len(SENTENCES)


def test_floats_and_base64_are_the_same_vector(client: openai.OpenAI) -> None:
    floats = client.embeddings.create(model="minilm", input="a", encoding_format="float").data[0].embedding
    text = client.embeddings.create(model="minilm", input="a", encoding_format="base64").data[0].embedding
    assert isinstance(text, str)
    assert struct.unpack("<384f", base64.b64decode(text)) == pytest.approx(floats, abs=1e-7)


def test_many_clients_share_batches_and_get_their_own_vectors(server: RunningServer) -> None:
    def embed(number: int) -> list[float]:
        body = {"model": "minilm", "input": f"sentence number {number % 10} of this test"}
        response = httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=120)
        assert response.status_code == 200, response.text
        vector: list[float] = response.json()["data"][0]["embedding"]
        return vector

    with ThreadPoolExecutor(16) as pool:
        vectors = list(pool.map(embed, range(80)))
    for number, vector in enumerate(vectors):
        assert dot(vector, vectors[number % 10]) == pytest.approx(1, abs=1e-5)


def test_too_long_inputs_are_refused_by_number_or_cut(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="input 1 has 302 tokens") as caught:
        client.embeddings.create(model="minilm", input=["short", "word " * 300])
    assert caught.value.code == "context_length_exceeded"
    answer = client.embeddings.create(
        model="minilm", input="word " * 300, extra_body={"truncate_prompt_tokens": -1}
    )
    assert answer.usage.prompt_tokens == 256
    right = expected(("word " * 254,))[0]
    assert dot(answer.data[0].embedding, right) == pytest.approx(1, abs=1e-5)


def test_shortened_vectors_are_refused_where_the_model_was_not_trained_for_them(
    client: openai.OpenAI,
) -> None:
    with pytest.raises(openai.BadRequestError, match="not trained for shortened"):
        client.embeddings.create(model="minilm", input="a", dimensions=64)


def test_a_text_request_to_it_says_where_to_go(server: RunningServer) -> None:
    response = server.chat("hello", model="minilm")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "model")
    assert "/v1/embeddings" in response.json()["error"]["message"]


def test_the_server_lists_it_as_a_model_for_embeddings(server: RunningServer) -> None:
    server.client.post("/v1/embeddings", json={"model": "minilm", "input": "a"})
    (model,) = (m for m in server.client.get("/v1/models").json()["data"] if m["id"] == "minilm")
    assert (model["status"], model["max_model_len"], model["task"]) == ("loaded", 256, "embed")
    log = Path(server.log_path).read_text(encoding="utf-8")
    assert "Traceback" not in log
