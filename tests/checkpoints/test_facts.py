from __future__ import annotations

import json
from pathlib import Path

import pytest

from inference_server.checkpoints.facts import model_facts, read_config
from inference_server.errors import FetchFailed
from tests.checkpoints.files import LLAMA, write_folder


def test_the_facts_of_a_llama_are_read(tmp_path: Path) -> None:
    facts = model_facts(write_folder(tmp_path, generation_config={"eos_token_id": [2, 5]}))
    assert (facts.architecture, facts.model_type, facts.dtype) == ("LlamaForCausalLM", "llama", "bfloat16")
    assert (facts.max_position_embeddings, facts.vocab_size, facts.num_layers) == (512, 100, 2)
    assert facts.eos_token_ids == {2, 5}


def test_gpt2_names_mean_the_same(tmp_path: Path) -> None:
    config = {
        "model_type": "gpt2",
        "n_positions": 1024,
        "n_layer": 12,
        "vocab_size": 9,
        "torch_dtype": "float32",
    }
    facts = model_facts(write_folder(tmp_path, config))
    assert (facts.max_position_embeddings, facts.num_layers, facts.dtype) == (1024, 12, "float32")
    assert facts.eos_token_ids == frozenset()


def test_a_multimodal_config_is_read_through_its_text_part(tmp_path: Path) -> None:
    config = {"model_type": "gemma3", "architectures": ["Gemma3"], "text_config": LLAMA | {"eos_token_id": 7}}
    facts = model_facts(write_folder(tmp_path, config | {"eos_token_id": 1}))
    assert (facts.model_type, facts.vocab_size, facts.eos_token_ids) == ("gemma3", 100, {1, 7})


def test_a_config_without_a_limit_gets_a_cautious_one(tmp_path: Path) -> None:
    config = {key: value for key, value in LLAMA.items() if key != "max_position_embeddings"}
    assert model_facts(write_folder(tmp_path, config)).max_position_embeddings == 2048


@pytest.mark.parametrize("value", [0, -1, True, "12", None, 1.5])
def test_a_count_that_is_none_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(FetchFailed, match="vocab_size"):
        model_facts(write_folder(tmp_path, LLAMA | {"vocab_size": value}))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"a": 1}\x00', "\ufeff{}", "1e999"])
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(FetchFailed):
        read_config(tmp_path)


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(FetchFailed, match=r"no config\.json"):
        read_config(tmp_path)


def test_infinity_is_what_transformers_reads_it_as(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"time_step_limit": [0.0, float("inf")]}))
    assert read_config(tmp_path) == {"time_step_limit": [0.0, float("inf")]}
