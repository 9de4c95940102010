from __future__ import annotations

import os
import shutil
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from inference_server.checkpoints.facts import model_facts
from inference_server.checkpoints.gguf import read_gguf_header
from inference_server.errors import FetchFailed
from inference_server.loading.convert import convert_gguf
from inference_server.loading.slim_gguf import write_slim_copy
from tests.loading.gguf_files import CHAT_TEMPLATE, SPECIALS, vocabulary, write_gguf

CORPUS = [
    "hello world",
    "  leading and   inner spaces ",
    "line\nbreaks\r\n\ttabs",
    "ünïcödé 你好 🙂👩‍👩‍👧 \u0000\u200b",
    "def f(x): return x**2  # 12345 3.14",
    "<|im_start|>user\nhi<|im_end|>",
    "don't I'LL we've",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def converted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted")
    convert_gguf(tiny, out, lambda *_: None)
    return out


def test_the_folder_has_what_serving_needs_and_nothing_else(converted: Path) -> None:
    assert sorted(os.listdir(converted)) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (converted / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    facts = model_facts(converted)
    assert (facts.model_type, facts.dtype, facts.max_position_embeddings) == ("llama", "bfloat16", 256)
    assert (facts.vocab_size, facts.eos_token_ids) == (len(vocabulary()), {2})


def test_the_weights_are_those_that_transformers_reads_itself(tiny: Path, converted: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(
        tiny.parent, gguf_file=tiny.name, dtype=torch.bfloat16
    ).state_dict()
    reference.pop("lm_head.weight")  # tied
    weights = load_file(converted / "model.safetensors")
    assert weights.keys() == reference.keys()
    assert all(torch.equal(weights[name], reference[name]) for name in weights)


def test_the_tokenizer_is_the_one_that_autotokenizer_makes(tiny: Path, converted: Path) -> None:
    slow = AutoTokenizer.from_pretrained(tiny.parent, gguf_file=tiny.name)
    fast = Tokenizer.from_file(str(converted / "tokenizer.json"))
    assert [fast.encode(text).ids for text in CORPUS] == [slow(text)["input_ids"] for text in CORPUS]
    assert fast.to_str() == slow.backend_tokenizer.to_str()
    assert [fast.token_to_id(token) for token in SPECIALS] == [0, 1, 2]


def test_a_file_that_does_not_name_its_vocabulary_size_is_counted(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", with_vocab_size=False)
    (tmp_path / "out").mkdir()
    convert_gguf(path, tmp_path / "out", lambda *_: None)
    assert model_facts(tmp_path / "out").vocab_size == len(vocabulary())


def test_files_beside_the_gguf_have_no_say(tiny: Path, converted: Path, tmp_path: Path) -> None:
    shutil.copy(tiny, tmp_path / "tiny.gguf")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "h", "chat_template": "evil"}')
    (tmp_path / "out").mkdir()
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out", lambda *_: None)
    for name in os.listdir(converted):
        assert (tmp_path / "out" / name).read_bytes() == (converted / name).read_bytes(), name


def test_progress_goes_from_nothing_to_all(tiny: Path, tmp_path: Path) -> None:
    progress: list[tuple[str, float | None]] = []
    convert_gguf(tiny, tmp_path, lambda stage, fraction: progress.append((stage, fraction)))
    fractions = [fraction for _, fraction in progress]
    assert {stage for stage, _ in progress} == {"convert"}
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert fractions == sorted(fractions, key=lambda fraction: fraction or 0.0)


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "nonesuch")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tmp_path / "out").mkdir()
    with pytest.raises(FetchFailed, match="nonesuch"):
        convert_gguf(tmp_path / "x.gguf", tmp_path / "out", lambda *_: None)
    assert os.listdir(tmp_path / "out") == []


def test_a_file_that_lacks_tensors_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "half.gguf", layers=1)
    (tmp_path / "out").mkdir()
    with pytest.raises(FetchFailed, match=r"incomplete.*9 tensors are missing \(model\.layers\.1\."):
        convert_gguf(path, tmp_path / "out", lambda *_: None)


def test_a_part_of_a_split_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", describe=lambda writer: writer.add_uint16("split.count", 3))
    with pytest.raises(FetchFailed, match=r"one of 3 parts.*llama-gguf-split --merge"):
        convert_gguf(path, tmp_path, lambda *_: None)


def test_a_file_that_was_merged_or_never_split_is_one_part(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", describe=lambda writer: writer.add_uint16("split.count", 1))
    (tmp_path / "out").mkdir()
    convert_gguf(path, tmp_path / "out", lambda *_: None)


def test_a_disk_without_room_is_refused_before_work_starts(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1))
    with pytest.raises(FetchFailed, match="disk"):
        convert_gguf(tiny, tmp_path, lambda *_: None)


def test_gguf_is_left_as_it_was(tiny: Path, converted: Path) -> None:
    assert not hasattr(gguf.get_tensor_name_map, "cache_info")


def test_a_slim_copy_differs_only_in_what_was_dropped(tiny: Path, tmp_path: Path) -> None:
    slim = tmp_path / "slim.gguf"
    write_slim_copy(tiny, read_gguf_header(tiny), slim, drop=("tokenizer.ggml.tokens",))
    whole, copy = gguf.GGUFReader(tiny), gguf.GGUFReader(slim)
    assert whole.fields.keys() - copy.fields.keys() == {"tokenizer.ggml.tokens"}
    assert [t.name for t in whole.tensors] == [t.name for t in copy.tensors]
    for ours, theirs in zip(whole.tensors, copy.tensors, strict=True):
        assert bytes(ours.data) == bytes(theirs.data)
        assert list(ours.shape) == list(theirs.shape)
