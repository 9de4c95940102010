"""Embeddings through a real worker process, and what a text model says to such a request."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from inference_server import errors
from inference_server.config.catalog import ModelSpec
from inference_server.config.settings import Settings
from inference_server.model_manager.plan import plan_model
from inference_server.types import EmbeddingRequest
from inference_server.worker.launcher import ForkServer
from tests.demo import EMBEDDING_SOURCE, embedding_folder
from tests.worker.children import ignore_progress, launcher_of, run, worker

REQUEST = EmbeddingRequest(request_id="r", inputs=((101, 7592, 102), (101, 7592, 2088, 102)))
GIB = 1024**3


@pytest.mark.model
def test_a_planned_model_answers_every_input_from_its_own_process() -> None:
    spec = ModelSpec(name="minilm", source=EMBEDDING_SOURCE)
    plan = plan_model(spec, embedding_folder(), Settings(), {"cpu": 4 * GIB}, frozenset())
    assert (plan.load.task, plan.max_model_len, plan.kv_cache_bytes) == ("embed", 256, 0)

    async def check() -> None:
        server = ForkServer(preload_torch=True)
        try:
            ready = await launcher_of(server).launch(plan.load, ignore_progress)
            vectors = await ready.embed(REQUEST)
            assert [len(vector) for vector in vectors] == [4 * 384] * 2
            for vector in vectors:
                assert sum(x * x for x in struct.unpack("<384f", vector)) == pytest.approx(1, abs=1e-5)
            assert ready.num_requests == 0
            # The plan leaves out nothing, and counts what is not loaded (the pooler, ids of positions).
            assert plan.weights_bytes * 0.95 < ready.ready.memory.weights_bytes <= plan.weights_bytes
            with pytest.raises(errors.ContextTooLong, match="257 tokens"):
                await ready.embed(EmbeddingRequest(request_id="long", inputs=((1,) * 257,)))
            await ready.stop()
        finally:
            await server.stop()

    run(check())


def test_a_text_model_refuses_to_embed_and_goes_on(tmp_path: Path) -> None:
    async def check() -> None:
        async with worker(tmp_path) as ready:
            for _ in range(2):
                with pytest.raises(errors.InvalidRequest, match="makes no embeddings") as refused:
                    await ready.embed(REQUEST)
                assert refused.value.param == "model"
            assert ready.num_requests == 0

    run(check())
