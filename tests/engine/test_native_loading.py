"""Packed weights: written at the first load, mapped at the next, given back in sleep; the answers stay."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors.torch import load_file, save_file

from inference_server.checkpoints.facts import read_config
from inference_server.checkpoints.native import native_cpu
from inference_server.checkpoints.packed import packed_files
from inference_server.engine import native
from inference_server.engine.assembly import build_text_engine
from inference_server.engine.process_memory import process_memory
from inference_server.engine.text_engine import EngineFacts, TextEngine
from inference_server.errors import InternalError, ModelLoadFailed, SleepUnsupported
from inference_server.execution.native import loading
from inference_server.model_manager.devices import cpu_flags
from inference_server.types import EngineSpec, GenerationRequest, SamplingParams
from tests.demo import demo_folder
from tests.engine.tiny_models import NATIVE_FAMILIES, save_tiny_model

pytestmark = pytest.mark.skipif(
    native_cpu(cpu_flags()) is not None, reason="this CPU does not run the native kernels"
)
MIB = 1 << 20


class Built(NamedTuple):
    engine: TextEngine
    facts: EngineFacts


def build(folder: Path, cache_dir: Path | None, quantization: str = "int8", **fields: object) -> Built:
    spec = EngineSpec(
        model="m",
        folder=str(folder),
        device="cpu",
        dtype="float32",
        quantization=quantization,
        kernels="native",
        max_model_len=128,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        cache_dir="" if cache_dir is None else str(cache_dir),
        **{"kv_cache_tokens": 1024, **fields},  # type: ignore[arg-type]
    )
    engine, facts = build_text_engine(spec, lambda stage, fraction: None)
    return Built(engine, facts)


def answer(engine: TextEngine) -> list[int]:
    """Twelve greedy tokens after a prompt of twenty."""
    sampling = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
    prompt = tuple(range(3, 23))
    engine.submit(GenerationRequest(request_id="a", prompt_token_ids=prompt, sampling=sampling))
    tokens: list[int] = []
    while engine.has_work:
        outcome = engine.step()
        assert not outcome.failures
        tokens += [token for delta in outcome.deltas for token in delta.token_ids]
    return tokens


def until_named(cache_dir: Path, folder: Path) -> None:
    """Wait for the thread that brings the file to the disk."""
    deadline_s = time.monotonic() + 30
    while not any(path.suffix == ".weights" for path in packed_files(cache_dir, folder)):
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


@pytest.fixture
def never_packs(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, whoever packs fails the test."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("this load should have mapped what was packed before")

    return lambda: monkeypatch.setattr(loading, "pack_matrices", refuse)


@pytest.mark.parametrize("family", sorted(NATIVE_FAMILIES))
def test_a_second_load_maps_what_the_first_has_packed(
    tmp_path: Path, never_packs: Callable[[], None], family: str
) -> None:
    folder, cache = save_tiny_model(family, tmp_path / "m", native=True), tmp_path / "cache"
    expected = answer(build(folder, None).engine)
    first = build(folder, cache)
    assert answer(first.engine) == expected
    until_named(cache, folder)
    never_packs()
    second = build(folder, cache)
    assert answer(second.engine) == expected
    assert second.facts.memory.weights_bytes == first.facts.memory.weights_bytes


def test_a_sleeping_model_takes_no_request_and_answers_the_same_once_awake(tmp_path: Path) -> None:
    folder = save_tiny_model("llama", tmp_path / "m", native=True)
    engine, facts = build(folder, tmp_path / "cache")
    assert engine.why_not_sleep == ""
    expected = answer(engine)
    for _ in range(2):
        asleep = engine.sleep()
        assert asleep.kv_cache_bytes == 0
        assert asleep.weights_bytes < facts.memory.weights_bytes
        with pytest.raises(InternalError, match="asleep"):
            answer(engine)
        awake = engine.wake()
        assert (awake.weights_bytes, awake.kv_cache_bytes) == (
            facts.memory.weights_bytes,
            facts.memory.kv_cache_bytes,
        )
        assert answer(engine) == expected


def test_weights_that_cannot_be_kept_are_packed_into_memory_and_do_not_sleep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny_model("llama", tmp_path / "m", native=True)
    expected = answer(build(folder, None).engine)
    monkeypatch.setattr(loading, "has_room", lambda path, num_bytes: False)
    full_disk = build(folder, tmp_path / "cache").engine
    assert answer(full_disk) == expected
    assert "not kept" in full_disk.why_not_sleep
    with pytest.raises(SleepUnsupported, match="not kept"):
        full_disk.sleep()
    (tmp_path / "a file").write_text("no folder")
    assert answer(build(folder, tmp_path / "a file").engine) == expected


def test_a_disk_that_fails_in_the_middle_costs_nothing_but_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = save_tiny_model("llama", tmp_path / "m", native=True), tmp_path / "cache"
    expected = answer(build(folder, None).engine)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loading.PackedWriter, "write", fail)
    assert answer(build(folder, cache).engine) == expected
    assert [path.name for path in packed_files(cache, folder)] == ["source"]


def test_a_changed_checkpoint_is_packed_anew(tmp_path: Path) -> None:
    folder, cache = save_tiny_model("llama", tmp_path / "m", native=True), tmp_path / "cache"
    old = answer(build(folder, cache).engine)
    until_named(cache, folder)
    shutil.rmtree(folder)
    save_tiny_model("mistral", folder, native=True)
    new = build(folder, cache).engine
    assert answer(new) == answer(build(folder, None).engine) != old


def test_a_layout_that_is_not_what_transformers_reads_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny_model("llama", tmp_path / "m", native=True)
    other = read_config(folder) | {"intermediate_size": 32}
    monkeypatch.setattr(native, "read_config", lambda folder: other)
    with pytest.raises(ModelLoadFailed, match="32 for intermediate_size"):
        build(folder, None)


def test_a_tied_head_in_the_checkpoint_must_be_the_embedding(tmp_path: Path) -> None:
    folder = save_tiny_model("llama", tmp_path / "m", native=True)
    expected = answer(build(folder, None).engine)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert answer(build(folder, None).engine) == expected
    tensors["lm_head.weight"][3, 5] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadFailed, match="tie_word_embeddings: false"):
        build(folder, tmp_path / "cache")


@pytest.mark.model
def test_sleep_gives_weights_and_kv_cache_back_to_the_machine(tmp_path: Path) -> None:
    engine, facts = build(demo_folder(), tmp_path / "cache", "gguf", kv_cache_tokens=8192)
    cache = facts.memory.kv_cache_bytes
    assert cache > 300 * MIB
    for number in range(6):  # write into a part of the KV cache that can be told from noise
        sampling = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)
        prompt = tuple(range(1000 * number + 3, 1000 * number + 103))
        engine.submit(GenerationRequest(request_id=str(number), prompt_token_ids=prompt, sampling=sampling))
    while engine.has_work:
        engine.step()
    awake = process_memory()
    engine.sleep()
    asleep = process_memory()
    assert awake is not None
    assert asleep is not None
    touched = 600 * cache // 8192
    assert awake.private_bytes - asleep.private_bytes > 0.8 * touched
    engine.wake()
