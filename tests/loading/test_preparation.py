from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from inference_server.checkpoints.inspection import inspect_folder
from inference_server.checkpoints.scripted import byte_tokenizer_json
from inference_server.errors import ConfigError, FetchFailed
from inference_server.loading import preparation
from inference_server.loading.preparation import PreparedFolder, prepare
from tests.loading.gguf_files import write_gguf


def run(source: str | Path, cache: Path, **changes: Any) -> PreparedFolder:
    arguments: dict[str, Any] = {
        "revision": None,
        "sha256": None,
        "allow_pickle": False,
        "trust_remote_code": False,
        "on_progress": lambda *_: None,
    }
    return prepare(source=str(source), cache_dir=cache, **(arguments | changes))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint as a hub repository has it."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=260,
        max_position_embeddings=128,
        eos_token_id=259,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(byte_tokenizer_json()), bos_token="<|bos|>", eos_token="<|eos|>"
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "checkpoint"))


def test_a_complete_folder_is_used_as_it_is(checkpoint: Path, tmp_path: Path) -> None:
    assert run(checkpoint, tmp_path / "cache") == PreparedFolder(checkpoint, None)


def test_a_snapshot_of_the_hub_cache_keeps_its_commit(checkpoint: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / ("a" * 40)
    shutil.copytree(checkpoint, snapshot)
    assert run(snapshot, tmp_path / "cache") == PreparedFolder(snapshot, "a" * 40)


def test_a_gguf_file_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    first = run(path, tmp_path / "cache")
    monkeypatch.setattr(preparation, "convert_gguf", None)
    monkeypatch.setattr("inference_server.checkpoints.digest.file_sha256", None)
    assert run(path, tmp_path / "cache") == first
    assert first.folder.is_relative_to(tmp_path / "cache" / "converted")


def test_another_file_under_the_same_name_is_converted_anew(tmp_path: Path) -> None:
    first = run(write_gguf(tmp_path / "tiny.gguf", seed=1), tmp_path / "cache")
    second = run(write_gguf(tmp_path / "tiny.gguf", seed=2), tmp_path / "cache")
    assert first.folder != second.folder


def test_a_conversion_that_lost_bytes_is_done_again(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    weights = run(path, tmp_path / "cache").folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    run(path, tmp_path / "cache")
    assert weights.read_bytes() == whole


def test_a_folder_without_tokenizer_json_gets_one_beside_links(checkpoint: Path, tmp_path: Path) -> None:
    _as_gpt2_vocabulary(checkpoint)
    prepared = run(checkpoint, tmp_path / "cache").folder
    tokenizer = Tokenizer.from_file(str(prepared / "tokenizer.json"))
    assert tokenizer.encode("hi!", add_special_tokens=False).ids == list(b"hi!")
    assert (prepared / "model.safetensors").resolve() == checkpoint / "model.safetensors"
    assert not (checkpoint / "tokenizer.json").exists()
    assert run(checkpoint, tmp_path / "cache").folder == prepared


def _as_gpt2_vocabulary(checkpoint: Path) -> None:
    """Put an older format in the place of tokenizer.json."""
    vocab = json.loads((checkpoint / "tokenizer.json").read_text())["model"]["vocab"] | {"hi": 260}
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "vocab.json").write_text(json.dumps(vocab))
    (checkpoint / "merges.txt").write_text("#version: 0.2\n")
    (checkpoint / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')


def test_a_changed_folder_is_completed_anew(checkpoint: Path, tmp_path: Path) -> None:
    _as_gpt2_vocabulary(checkpoint)
    first = run(checkpoint, tmp_path / "cache").folder
    (checkpoint / "merges.txt").write_text("#version: 0.2\nh i\n")
    assert run(checkpoint, tmp_path / "cache").folder != first


def test_a_tokenizer_that_cannot_be_made_is_named(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "tokenizer_config.json").unlink()
    with pytest.raises(FetchFailed, match=r"no tokenizer\.json"):
        run(checkpoint, tmp_path / "cache")


def test_allowed_pickles_become_safetensors(checkpoint: Path, tmp_path: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    torch.save(weights, checkpoint / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="allow_pickle"):
        run(checkpoint, tmp_path / "cache")
    prepared = run(checkpoint, tmp_path / "cache", allow_pickle=True).folder
    converted = load_file(prepared / "model.safetensors")
    assert converted.keys() == weights.keys()
    assert all(torch.equal(converted[name], weights[name]) for name in weights)
    assert not list(prepared.glob("*.bin"))
    inspect_folder(prepared, allow_pickle=False, trust_remote_code=False)


def test_what_a_pickle_lacks_the_safetensors_lack_too(checkpoint: Path, tmp_path: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    del weights["lm_head.weight"]  # as an encoder's, or a decoder's that was saved without its head
    (checkpoint / "model.safetensors").unlink()
    torch.save(weights, checkpoint / "pytorch_model.bin")
    prepared = run(checkpoint, tmp_path / "cache", allow_pickle=True).folder
    assert load_file(prepared / "model.safetensors").keys() == weights.keys()


def test_a_pickle_that_runs_code_is_refused_even_if_allowed(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    torch.save({"x": _Touch(tmp_path / "ran")}, checkpoint / "pytorch_model.bin")
    with pytest.raises(FetchFailed, match="pickled"):
        run(checkpoint, tmp_path / "cache", allow_pickle=True)
    assert not (tmp_path / "ran").exists()


class _Touch:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self._path,)


def test_code_in_a_config_is_refused_before_anything_is_loaded(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["x.Y", null]}}')
    monkeypatch.setattr(preparation, "_export_tokenizer", None)
    with pytest.raises(ConfigError, match="trust_remote_code"):
        run(checkpoint, tmp_path / "cache")


def test_a_later_start_imports_neither_torch_nor_transformers(checkpoint: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    run(path, tmp_path / "cache")
    program = (
        "import sys; from pathlib import Path\n"
        "from inference_server.loading.preparation import prepare\n"
        "for source in (*sys.argv[2:], 'scripted'):\n"
        "    prepare(source=source, revision=None, sha256=None, cache_dir=Path(sys.argv[1]),\n"
        "            allow_pickle=False, trust_remote_code=False, on_progress=lambda *_: None)\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    arguments = [str(tmp_path / "cache"), str(path), str(checkpoint)]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True)
