"""Checkpoints that come quantized, planned, loaded and run: fp8 and two kinds of compressed-tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from inference_server.config.catalog import ModelSpec
from inference_server.config.settings import Settings
from inference_server.engine.assembly import build_text_engine
from inference_server.errors import ConfigError
from inference_server.model_manager.model_plan import ModelPlan
from inference_server.model_manager.plan import plan_model
from tests.engine.reference import greedy_request, run_to_end, tokens_of

Tensors = dict[str, torch.Tensor]
BLOCK, GROUP = 128, 128  # an fp8 scale is for a square of weights, one of pack-quantized for a run of a row
MAX_ERROR = {"fp8": 0.05, "int8": 0.01, "int4": 0.15}  # of a weight matrix, relative
FP8 = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "weight_block_size": [BLOCK, BLOCK],
    "fmt": "e4m3",
}


def compressed(format_: str, weights: Mapping[str, object]) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": format_,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


INT8 = compressed("int-quantized", {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"})
INT4 = compressed(
    "pack-quantized",
    {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP},
)


def to_fp8(name: str, weight: torch.Tensor) -> Tensors:
    rows, columns = weight.shape
    squares = weight.reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    scales = squares.abs().amax(dim=(1, 3)) / 448
    codes = (squares / scales[:, None, :, None]).reshape(rows, columns).to(torch.float8_e4m3fn)
    return {name: codes, f"{name}_scale_inv": scales}


def to_int8(name: str, weight: torch.Tensor) -> Tensors:
    scales = (weight.abs().amax(1, keepdim=True) / 127).to(torch.bfloat16)
    return {name: torch.round(weight / scales).clamp(-127, 127).to(torch.int8), f"{name}_scale": scales}


def to_int4(name: str, weight: torch.Tensor) -> Tensors:
    rows, columns = weight.shape
    runs = weight.reshape(rows, columns // GROUP, GROUP)
    scales = (runs.abs().amax(2) / 7).to(torch.bfloat16)
    codes = torch.round(runs / scales[..., None]).clamp(-8, 7).reshape(rows, columns // 8, 8).long() + 8
    packed = (codes << (4 * torch.arange(8))).sum(-1)  # the first code lies in the lowest bits
    packed = torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)
    return {
        f"{name}_packed": packed,
        f"{name}_scale": scales,
        f"{name}_shape": torch.tensor([rows, columns]),
    }


SCHEMES: dict[str, tuple[dict[str, Any], Callable[[str, torch.Tensor], Tensors]]] = {
    "fp8": (FP8, to_fp8),
    "int8": (INT8, to_int8),
    "int4": (INT4, to_int4),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with sizes that suit every scheme."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    folder = tmp_path_factory.mktemp("plain")
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=sorted(SCHEMES))
def stored(request: pytest.FixtureRequest, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same checkpoint, quantized on disk."""
    if request.param != "fp8":
        pytest.importorskip("compressed_tensors")
    config, quantize = SCHEMES[request.param]
    folder = tmp_path_factory.mktemp("stored") / str(request.param)
    folder.mkdir()
    tensors: Tensors = {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        is_linear = tensor.ndim == 2 and ".layers." in name
        tensors |= quantize(name, tensor.float()) if is_linear else {name: tensor}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    described = json.loads((plain / "config.json").read_text()) | {"quantization_config": config}
    (folder / "config.json").write_text(json.dumps(described))
    return folder


def plan(folder: Path, **fields: Any) -> ModelPlan:
    spec = ModelSpec(name="m", source=str(folder), device="cpu", max_model_len=256, **fields)
    settings = Settings(max_num_seqs=4, max_num_batched_tokens=64)
    return plan_model(spec, folder, settings, {"cpu": 1 << 40}, frozenset())


@pytest.mark.filterwarnings("ignore")  # of compressed-tensors and of transformers, about themselves
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_plan_is_exact_and_the_weights_are_those_that_the_codes_stand_for(
    plain: Path, stored: Path, dtype: str
) -> None:
    planned = plan(stored, dtype=dtype)
    engine, facts = build_text_engine(planned.load, lambda stage, fraction: None)
    held = facts.memory.weights_bytes + facts.memory.kv_cache_bytes
    assert abs(planned.weights_bytes + planned.kv_cache_bytes - held) / held < 0.01
    original = load_file(plain / "model.safetensors")
    loaded = dict(engine.runner._model.named_parameters())  # type: ignore[attr-defined]
    assert {parameter.dtype for parameter in loaded.values()} == {getattr(torch, dtype)}
    for name in (name for name in loaded if "_proj" in name):
        exact = original[name].float()
        error = torch.linalg.norm(loaded[name].float() - exact) / torch.linalg.norm(exact)
        assert error < MAX_ERROR[stored.name]


@pytest.mark.filterwarnings("ignore")
def test_it_generates_what_the_unpacked_weights_generate(stored: Path) -> None:
    engine, _ = build_text_engine(plan(stored, dtype="float32").load, lambda stage, fraction: None)
    prompt = list(range(3, 23))
    engine.submit(greedy_request("r", prompt, 8))
    generated = tokens_of(run_to_end(engine)["r"])
    twin = reference_model_of(engine.runner._model)  # type: ignore[attr-defined]
    ids = torch.tensor([prompt])
    expected = twin.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False)[0, len(prompt) :]
    assert generated == expected.tolist()


def reference_model_of(model: Any) -> Any:
    """A plain model with the same weights and transformers' own attention."""
    config = LlamaConfig.from_dict(model.config.to_dict() | {"quantization_config": None})
    config._attn_implementation = "eager"
    twin = LlamaForCausalLM(config).float().eval()
    twin.load_state_dict(model.state_dict())
    return twin


def test_an_entry_may_name_the_scheme_but_no_other(stored: Path) -> None:
    name = "fp8" if stored.name == "fp8" else "compressed-tensors"
    assert plan(stored, quantization=name).load.quantization == name
    for other in ("none", "bnb-nf4", "int8", "gptq"):
        with pytest.raises(ConfigError, match=f"comes quantized as {name}; use quantization: auto") as caught:
            plan(stored, quantization=other)
        assert caught.value.param == "quantization"
    with pytest.raises(ConfigError, match="already quantized; use kernels: auto"):
        plan(stored, kernels="native")


def test_a_plain_checkpoint_is_not_called_by_the_name_of_a_stored_scheme(plain: Path) -> None:
    with pytest.raises(ConfigError, match="wants quantization 'fp8', but its checkpoint is not"):
        plan(plain, quantization="fp8")
