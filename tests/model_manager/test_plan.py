"""How a model will be loaded, and what that takes."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from inference_server.checkpoints.facts import read_config
from inference_server.checkpoints.native import native_shape
from inference_server.checkpoints.native_weights import native_weight_bytes
from inference_server.config.catalog import KvCacheSpec, ModelSpec
from inference_server.config.settings import Settings
from inference_server.errors import ConfigError, ModelLoadFailed
from inference_server.model_manager import workspace
from inference_server.model_manager.plan import ModelPlan, plan_model
from inference_server.model_manager.planning import planner_for
from inference_server.types import Speculation
from tests.checkpoints.files import write_native_folder

GIB = 1024**3
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "dtype": "bfloat16",
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
NUM_WEIGHTS = 1000 * 64 + 2 * 64 * 64
KV_VALUES_PER_TOKEN = 2 * 2 * 2 * 16  # keys and values, layers, heads, head size


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with real headers and zeros for weights."""
    shapes = {"model.embed_tokens.weight": (1000, 64)}
    shapes |= {f"model.layers.{i}.self_attn.q_proj.weight": (64, 64) for i in range(2)}
    header: dict[str, Any] = {}
    offset = 0
    for name, (rows, columns) in shapes.items():
        end = offset + rows * columns * 2
        header[name] = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(offset))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def plan(
    folder: Path,
    *,
    capacity: dict[str, int] | None = None,
    flags: frozenset[str] = frozenset(),
    settings: Settings | None = None,
    **fields: Any,
) -> ModelPlan:
    spec = ModelSpec(**{"name": "m", "source": str(folder), **fields})
    return plan_model(spec, folder, settings or Settings(), capacity or {"cpu": GIB}, flags)


def test_weights_and_kv_cache_are_counted_in_the_dtype_they_will_have(folder: Path) -> None:
    planned = plan(folder, max_model_len=512)
    assert planned.load.dtype == "float32"
    assert planned.weights_bytes == NUM_WEIGHTS * 4
    assert planned.load.kv_cache_tokens == 8 * 512
    assert planned.kv_cache_bytes == (8 * 512 + 16) * KV_VALUES_PER_TOKEN * 4
    half = plan(folder, max_model_len=512, dtype="bfloat16")
    assert (half.weights_bytes * 2, half.kv_cache_bytes * 2) == (
        planned.weights_bytes,
        planned.kv_cache_bytes,
    )


def test_the_reservation_is_the_sum_of_its_parts(folder: Path) -> None:
    planned = plan(folder)
    parts = planned.weights_bytes + planned.kv_cache_bytes + planned.workspace_bytes + planned.context_bytes
    assert planned.bytes_by_device == {"cpu": parts}
    assert planned.context_bytes == workspace.CPU_CONTEXT_BYTES
    assert planned.workspace_bytes > Settings().max_num_seqs * 1000 * 4


def test_quantized_linear_layers_take_fewer_bytes(folder: Path) -> None:
    assert plan(folder, quantization="bnb-nf4").weights_bytes < plan(folder).weights_bytes
    assert plan(folder, quantization="bnb-nf4").load.quantization == "bnb-nf4"


def test_the_context_is_never_longer_than_the_model_allows(folder: Path) -> None:
    assert plan(folder).max_model_len == 2048
    assert plan(folder, max_model_len=512).max_model_len == 512
    assert plan(folder, max_model_len=4096).max_model_len == 2048


def test_a_kv_cache_in_tokens_or_bytes_is_taken_in_whole_blocks(folder: Path) -> None:
    assert plan(folder, kv_cache=KvCacheSpec(num_tokens=3001)).load.kv_cache_tokens == 3008
    num_bytes = 3001 * KV_VALUES_PER_TOKEN * 4
    assert plan(folder, kv_cache=KvCacheSpec(num_bytes=num_bytes)).load.kv_cache_tokens == 2992


def test_a_kv_cache_smaller_than_the_context_shortens_the_context(folder: Path) -> None:
    planned = plan(folder, kv_cache=KvCacheSpec(num_tokens=160))
    assert planned.max_model_len == planned.load.kv_cache_tokens == 160


def test_a_default_kv_cache_shrinks_until_the_model_fits_but_never_below_one_context(folder: Path) -> None:
    two_contexts = plan(folder, kv_cache=KvCacheSpec(num_tokens=2 * 2048)).bytes_by_device
    assert plan(folder, capacity={"cpu": two_contexts["cpu"]}).load.kv_cache_tokens == 2 * 2048
    assert plan(folder, capacity={"cpu": two_contexts["cpu"] - 1}).load.kv_cache_tokens == 2048
    assert plan(folder, capacity={"cpu": 1}).load.kv_cache_tokens == 2048


def test_auto_takes_the_gpu_with_most_room_and_the_cpu_where_none_has_enough(folder: Path) -> None:
    gpus = {"cpu": 2 * GIB, "cuda:0": 2 * GIB, "cuda:1": 3 * GIB}
    on_gpu = plan(folder, capacity=gpus)
    assert on_gpu.device == "cuda:1"
    assert on_gpu.load.dtype == "bfloat16"
    assert on_gpu.bytes_by_device["cpu"] == workspace.CUDA_HOST_CONTEXT_BYTES
    assert on_gpu.context_bytes == workspace.CUDA_DEVICE_CONTEXT_BYTES
    assert plan(folder, capacity={"cpu": GIB, "cuda:0": 1000}).device == "cpu"


def test_a_named_device_is_kept_even_if_the_model_does_not_fit(folder: Path) -> None:
    capacity = {"cpu": GIB, "cuda:0": 1000}
    assert plan(folder, capacity=capacity, device="cuda").device == "cuda:0"
    assert plan(folder, capacity=capacity, device="cuda:0").device == "cuda:0"
    assert plan(folder, capacity={"cpu": 1}, device="cpu").device == "cpu"


@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_device_that_is_not_here_is_refused(folder: Path, device: str) -> None:
    with pytest.raises(ModelLoadFailed, match=f"wants device '{device}'"):
        plan(folder, device=device)


def test_the_load_message_carries_the_engine_settings(folder: Path) -> None:
    settings = Settings(max_num_seqs=7, max_num_batched_tokens=99, num_threads=3, enable_prefix_caching=False)
    load = plan(folder, settings=settings, trust_remote_code=True).load
    assert (load.max_num_seqs, load.max_num_batched_tokens, load.num_threads) == (7, 99, 3)
    assert (load.enable_prefix_caching, load.trust_remote_code, load.scripted) == (False, True, False)
    assert (load.model, load.folder) == ("m", str(folder))


def test_the_load_message_carries_pacing_and_speculation(folder: Path) -> None:
    load = plan(folder, settings=Settings(prefill_slowdown=4.0)).load
    assert (load.prefill_slowdown, load.speculation) == (4.0, None)
    load = plan(folder, speculation="prompt-lookup", max_draft_tokens=5).load
    assert load.speculation == Speculation(max_draft_tokens=5)
    assert load.prefill_slowdown == Settings().prefill_slowdown


def test_drafts_need_workspace_for_their_logits(folder: Path) -> None:
    def needed(**changes: object) -> int:
        return plan(folder, settings=Settings(max_num_seqs=8), **changes).workspace_bytes

    few = needed(speculation="prompt-lookup", max_draft_tokens=3, max_drafting_seqs=2)
    assert few == needed()
    assert needed(speculation="prompt-lookup", max_draft_tokens=3, max_drafting_seqs=4) > few


def test_more_sequences_and_a_larger_vocabulary_need_more_workspace() -> None:
    def needed(**changes: int) -> int:
        fields = {
            "max_num_batched_tokens": 512,
            "max_num_seqs": 64,
            "vocab_size": 1000,
            "num_layers": 2,
            "kv_cache_bytes": 1000,
            "itemsize": 4,
        }
        return workspace.workspace_bytes(CONFIG, workspace.StepShape(**(fields | changes)))

    base = needed()
    for change in ({"max_num_seqs": 65}, {"vocab_size": 1001}, {"max_num_batched_tokens": 513}):
        assert needed(**change) > base
    assert needed(kv_cache_bytes=5000) == base + 4000


def test_a_scripted_model_takes_a_few_mebibytes_on_the_cpu(tmp_path: Path) -> None:
    config = {"model_type": "scripted", "max_position_embeddings": 32768, "vocab_size": 260}
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    for source in ("scripted", "scripted:?step_ms=5"):
        planned = plan(tmp_path, source=source, max_model_len=100, capacity={"cpu": GIB, "cuda:0": GIB})
        assert planned.load.scripted
        assert planned.device == "cpu"
        assert planned.bytes_by_device["cpu"] <= 8 * workspace.MIB
        assert (planned.max_model_len, planned.load.kv_cache_tokens) == (100, 800)


def test_the_default_planner_plans_off_the_event_loop(folder: Path) -> None:
    import asyncio

    spec = ModelSpec(name="m", source=str(folder))
    planned = asyncio.run(planner_for(Settings())(spec, folder, {"cpu": GIB}))
    assert planned.load.model == "m"


NATIVE_FLAGS = frozenset({"avx2", "fma", "f16c"})


@pytest.fixture
def native_folder(tmp_path: Path) -> Path:
    """A whole checkpoint that the native kernels run."""
    return write_native_folder(tmp_path / "native", blocks=True)


def test_a_model_for_the_native_kernels_is_counted_as_they_pack_it(native_folder: Path) -> None:
    planned = plan(native_folder, flags=NATIVE_FLAGS, max_model_len=128, quantization="none")
    load = planned.load
    assert (load.kernels, load.quantization, load.dtype) == ("native", "none", "bfloat16")
    config = read_config(native_folder)
    counted = native_weight_bytes(
        config, quantization="none", dtype="bfloat16", block_bits={}, max_model_len=128
    )
    assert planned.weights_bytes == counted
    assert planned.kv_cache_bytes == (8 * 128 + 16) * 2 * 2 * 2 * 32 * 2
    assert planned.context_bytes == workspace.NATIVE_CONTEXT_BYTES
    assert planned.workspace_bytes == workspace.native_workspace_bytes(
        native_shape(config), _step_of(Settings(), vocab_size=100)
    )


def _step_of(settings: Settings, vocab_size: int) -> workspace.StepShape:
    return workspace.StepShape(
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_num_seqs=settings.max_num_seqs,
        vocab_size=vocab_size,
        num_layers=2,
        kv_cache_bytes=0,
        itemsize=2,
    )


def test_a_format_with_fewer_bits_takes_fewer_bytes(native_folder: Path) -> None:
    sizes = [
        plan(native_folder, flags=NATIVE_FLAGS, quantization=quantization, max_model_len=16).weights_bytes
        for quantization in ("none", "int8", "int4")
    ]
    assert sizes == sorted(sizes, reverse=True)
    auto = plan(native_folder, flags=NATIVE_FLAGS, max_model_len=16)
    assert auto.load.quantization == "gguf"
    assert auto.weights_bytes < sizes[0]


def test_what_only_cpus_compute_goes_to_the_cpu_where_the_device_is_open(native_folder: Path) -> None:
    gpus = {"cpu": GIB, "cuda:0": GIB}
    assert plan(native_folder, capacity=gpus, flags=NATIVE_FLAGS).device == "cuda:0"
    assert plan(native_folder, capacity=gpus, flags=NATIVE_FLAGS, quantization="int4").device == "cpu"
    assert plan(native_folder, capacity=gpus, flags=NATIVE_FLAGS, kernels="native").device == "cpu"
    with pytest.raises(ConfigError, match="not on cuda:0"):
        plan(native_folder, capacity=gpus, flags=NATIVE_FLAGS, quantization="int4", device="cuda")


def test_rotary_tables_are_as_long_as_the_context(native_folder: Path) -> None:
    short, long = (
        plan(native_folder, flags=NATIVE_FLAGS, max_model_len=length).weights_bytes for length in (64, 128)
    )
    assert long - short == 64 * 32 * 4
