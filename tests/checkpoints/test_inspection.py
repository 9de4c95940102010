from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from inference_server.checkpoints.inspection import inspect_folder
from inference_server.errors import ConfigError, FetchFailed
from tests.checkpoints.files import LLAMA, write_folder


def inspect(folder: Path, *, allow_pickle: bool = False, trust_remote_code: bool = False) -> None:
    inspect_folder(folder, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)


def test_a_plain_checkpoint_passes(tmp_path: Path) -> None:
    tokenizer = {"auto_map": None, "added_tokens_decoder": {"1": {"content": "a/b:c"}}}
    inspect(write_folder(tmp_path, LLAMA | {"_attn_implementation": "sdpa"}, tokenizer_config=tokenizer))


CODE: list[dict[str, Any]] = [
    {"auto_map": {"AutoModelForCausalLM": "modeling.Evil"}},
    {"text_config": {"auto_map": {"AutoConfig": "x.Y"}}},
    {"parts": [[{"auto_map": ["x.Y", None]}]]},
    {"_attn_implementation": "evil/kernel"},
    {"_attn_implementation_internal": "evil/kernel:fn"},
    {"attn_implementation": {"": "evil/kernel"}},
    {"text_config": {"_attn_implementation_autoset": False, "_attn_implementation": "a:b"}},
    {"_experts_implementation": "evil/kernel"},
    {"custom_generate": "evil/generate"},
]


@pytest.mark.parametrize("addition", CODE)
@pytest.mark.parametrize("stem", ["config", "tokenizer_config", "generation_config", "processor_config"])
def test_code_from_elsewhere_needs_trust(tmp_path: Path, stem: str, addition: dict[str, Any]) -> None:
    base = LLAMA if stem == "config" else {}
    write_folder(tmp_path, **{stem: base | addition})
    with pytest.raises(ConfigError, match="trust_remote_code") as caught:
        inspect(tmp_path)
    assert f"{stem}.json" in caught.value.message
    assert str(tmp_path) not in caught.value.message
    inspect(tmp_path, trust_remote_code=True)


@pytest.mark.parametrize(
    "addition",
    [
        {"transformers_weights": "adapter_model.bin"},
        {"text_config": {"transformers_weights": "other.safetensors"}},
        {"configuration_files": ["config.4.0.0.json"]},
        {"attribute_map": {"transformers_weights": "harmless"}, "harmless": "adapter_model.bin"},
    ],
)
def test_a_config_that_leads_elsewhere_is_refused(tmp_path: Path, addition: dict[str, Any]) -> None:
    write_folder(tmp_path, LLAMA | addition)
    with pytest.raises(ConfigError, match="not inspected"):
        inspect(tmp_path, allow_pickle=True, trust_remote_code=True)


def test_an_empty_name_of_other_weights_does_no_harm(tmp_path: Path) -> None:
    inspect(write_folder(tmp_path, LLAMA | {"transformers_weights": None}))


def test_leading_space_hides_nothing(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "generation_config.json").write_text(" " * 5000 + json.dumps({"custom_generate": "x"}))
    with pytest.raises(ConfigError, match="trust_remote_code"):
        inspect(tmp_path)


def test_deep_nesting_hides_nothing(tmp_path: Path) -> None:
    nested: object = {"auto_map": {"a": "b"}}
    for _ in range(100):
        nested = [nested]
    with pytest.raises(FetchFailed, match="nested"):
        inspect(write_folder(tmp_path, LLAMA | {"x": nested}))


def test_pickled_weights_need_a_permission(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="allow_pickle"):
        inspect(tmp_path)
    inspect(tmp_path, allow_pickle=True)


def test_pickles_beside_safetensors_do_no_harm(tmp_path: Path) -> None:
    (write_folder(tmp_path) / "pytorch_model.bin").write_bytes(b"x")
    inspect(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (write_folder(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"no model\.safetensors"):
        inspect(tmp_path, allow_pickle=True)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    (write_folder(tmp_path) / "model.safetensors").write_bytes(b"")
    with pytest.raises(FetchFailed, match="damaged"):
        inspect(tmp_path)


def test_more_layers_than_tensors_are_refused(tmp_path: Path) -> None:
    for config in ({"num_hidden_layers": 200_000}, {"text_config": {"n_layer": 10**12}}):
        with pytest.raises(FetchFailed, match=r"layers, the checkpoint has 4 tensors"):
            inspect(write_folder(tmp_path, LLAMA | config))


def test_an_adapter_is_not_a_model(tmp_path: Path) -> None:
    write_folder(tmp_path, adapter_config={"base_model_name_or_path": "evil/base"})
    with pytest.raises(ConfigError, match="adapter"):
        inspect(tmp_path, trust_remote_code=True)


def test_the_checks_hold_without_assertions(tmp_path: Path) -> None:
    write_folder(tmp_path, LLAMA | {"auto_map": {"AutoConfig": "x.Y"}})
    program = (
        "import sys; from pathlib import Path\n"
        "from inference_server.checkpoints.inspection import inspect_folder\n"
        "inspect_folder(Path(sys.argv[1]), allow_pickle=False, trust_remote_code=False)"
    )
    result = subprocess.run(
        [sys.executable, "-O", "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "trust_remote_code" in result.stderr
