"""What kind of model an entry is, and what an embedding model's files say of its length and modules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inference_server.checkpoints.sentence import is_sentence_folder, read_sentence_config, usable_positions
from inference_server.config.catalog import ModelSpec
from inference_server.config.settings import Settings
from inference_server.errors import ConfigError
from inference_server.model_manager.embedding_plan import embedding_needs, embeds

TRANSFORMER = {"type": "sentence_transformers.models.Transformer", "path": ""}
POOLING = {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}
NORMALIZE = {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"}


def write(folder: Path, modules: list[dict[str, str]] | None = None, **files: Any) -> Path:
    (folder / "1_Pooling").mkdir(exist_ok=True)
    contents = {"config": {"model_type": "bert"}, "1_Pooling/config": {"pooling_mode_cls_token": True}}
    for name, content in {**contents, **files, "modules": modules}.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("task", "has_modules", "expected"),
    [("auto", True, True), ("auto", False, False), ("embed", False, True), ("generate", True, False)],
)
def test_the_entry_decides_and_else_the_folder(
    tmp_path: Path, task: str, has_modules: bool, expected: bool
) -> None:
    if has_modules:
        write(tmp_path, [TRANSFORMER, POOLING])
    assert embeds(ModelSpec(name="m", source="./m", task=task), tmp_path) is expected


def test_modules_say_how_states_become_a_vector(tmp_path: Path) -> None:
    write(tmp_path, [TRANSFORMER, POOLING, NORMALIZE], sentence_bert_config={"max_seq_length": 128})
    found = read_sentence_config(tmp_path)
    assert (found.poolings, found.normalize, found.max_seq_length) == (("cls",), True, 128)
    assert is_sentence_folder(tmp_path)
    write(tmp_path, [TRANSFORMER, POOLING])
    assert not read_sentence_config(tmp_path).normalize


@pytest.mark.parametrize(
    ("architecture", "pooling"), [("BertModel", "mean"), ("Qwen3ForCausalLM", "lasttoken")]
)
def test_a_folder_without_modules_gets_what_suits_its_attention(
    tmp_path: Path, architecture: str, pooling: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    found = read_sentence_config(tmp_path)
    assert (found.poolings, found.normalize) == ((pooling,), True)


@pytest.mark.parametrize(
    "modules",
    [
        [TRANSFORMER, {"type": "custom_st.Pooling", "path": "1_Pooling"}],
        [TRANSFORMER, {"type": "sentence_transformers.models.Pooling", "path": "../1_Pooling"}],
        [TRANSFORMER, POOLING, {"type": "sentence_transformers.models.LSTM", "path": "2_LSTM"}],
        [POOLING, TRANSFORMER],
        [TRANSFORMER, NORMALIZE, POOLING],
        [TRANSFORMER],
    ],
)
def test_modules_that_are_not_supported_are_refused(tmp_path: Path, modules: list[dict[str, str]]) -> None:
    write(tmp_path, modules)
    with pytest.raises(ConfigError, match=r"modules\.json"):
        read_sentence_config(tmp_path)


@pytest.mark.parametrize(
    ("pooling", "prompts"),
    [
        ({"pooling_mode": "attention"}, {}),
        ({"pooling_mode_cls_token": False}, {}),
        (
            {"pooling_mode": "mean", "include_prompt": False},
            {"prompts": {"q": "x"}, "default_prompt_name": "q"},
        ),
        ({"pooling_mode": "mean"}, {"prompts": {}, "default_prompt_name": "q"}),
    ],
)
def test_poolings_and_prompts_that_are_not_supported_are_refused(
    tmp_path: Path, pooling: dict[str, Any], prompts: dict[str, Any]
) -> None:
    files = {"1_Pooling/config": pooling, "config_sentence_transformers": prompts}
    write(tmp_path, [TRANSFORMER, POOLING], **files)
    with pytest.raises(ConfigError):
        read_sentence_config(tmp_path)


def test_some_families_leave_their_first_positions_to_padding() -> None:
    assert usable_positions({"model_type": "xlm-roberta", "pad_token_id": 1}, 514) == 512
    assert usable_positions({"model_type": "bert", "pad_token_id": 0}, 512) == 512


@pytest.mark.parametrize(("key", "value"), [("quantization", "int8"), ("kernels", "native")])
def test_what_embedding_models_do_not_support_is_refused(tmp_path: Path, key: str, value: str) -> None:
    spec = ModelSpec(name="m", source="./m", **{key: value})
    with pytest.raises(ConfigError) as caught:
        embedding_needs(spec, tmp_path, Settings(), "cpu")
    assert caught.value.param == key
