from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from inference_server.checkpoints.hub import fetch_hub, select_files
from inference_server.checkpoints.sources import HubSource
from inference_server.errors import ConfigError, FetchFailed
from tests.checkpoints.files import write_folder

COMMIT = "a" * 40


def chosen(*names: str, allow_pickle: bool = False, trust_remote_code: bool = False) -> set[str]:
    sizes = dict.fromkeys(names, 1)
    return set(select_files(sizes, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code))


def test_only_what_serving_needs_is_chosen() -> None:
    needed = {"config.json", "tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja"}
    needed |= {"model.safetensors", "additional_chat_templates/tool_use.jinja"}
    rest = {"README.md", "pytorch_model.bin", "onnx/model.onnx", "onnx/config.json", "modeling_x.py"}
    rest |= {"original/consolidated.00.pth", "consolidated.safetensors", "flax_model.msgpack", "x.gguf"}
    assert chosen(*needed, *rest) == needed


def test_the_modules_of_a_sentence_transformers_folder_are_chosen() -> None:
    needed = {"config.json", "model.safetensors", "modules.json", "1_Pooling/config.json"}
    needed |= {"2_Dense/config.json", "2_Dense/model.safetensors"}
    assert chosen(*needed, "2_Dense/pytorch_model.bin", "onnx/model.safetensors") == needed


def test_the_shards_of_the_index_are_chosen() -> None:
    shards = {"model.safetensors.index.json", "model-00001-of-00002.safetensors"}
    shards |= {"model-00002-of-00002.safetensors"}
    assert chosen("config.json", *shards, "consolidated.safetensors") == {"config.json", *shards}


def test_pickled_weights_are_chosen_only_when_allowed() -> None:
    names = ("config.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    with pytest.raises(ConfigError, match="allow_pickle"):
        chosen(*names)
    assert chosen(*names, allow_pickle=True) == set(names)
    assert chosen(*names, "model.safetensors", allow_pickle=True) == {"config.json", "model.safetensors"}


def test_code_is_chosen_only_when_trusted() -> None:
    names = ("config.json", "model.safetensors", "modeling_x.py")
    assert "modeling_x.py" in chosen(*names, trust_remote_code=True)


@pytest.mark.parametrize(("name", "reason"), [("x.gguf", "GGUF"), ("README.md", "no model.safetensors")])
def test_a_repository_without_weights_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        chosen("config.json", name)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache with one complete repository, org/tiny."""
    repository = tmp_path / "models--org--tiny"
    write_folder(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def get(repo: str = "org/tiny", revision: str | None = None) -> tuple[Path, str]:
    return fetch_hub(
        HubSource(repo, revision), allow_pickle=False, trust_remote_code=False, on_progress=lambda *_: None
    )


def test_offline_the_cached_snapshot_serves(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder, commit = get()
    assert (folder, commit) == (hub_cache / "models--org--tiny" / "snapshots" / COMMIT, COMMIT)
    assert get(revision=COMMIT)[0] == folder
    with pytest.raises(FetchFailed, match="HF_HUB_OFFLINE"):
        get("org/other")
    with pytest.raises(FetchFailed, match="not in the local cache"):
        get(revision="dev")


def test_an_unreachable_hub_falls_back_to_the_cache(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _answer(monkeypatch, ConnectionError("no route"))
    assert get()[1] == COMMIT
    with pytest.raises(FetchFailed, match="cannot be reached"):
        get("org/other")


def test_row_14_files_of_one_commit_are_fetched_once(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [
        SimpleNamespace(rfilename=name, size=8) for name in ("model.safetensors", "config.json", "a.bin")
    ]
    _answer(monkeypatch, SimpleNamespace(sha=COMMIT, siblings=files))
    asked: list[tuple[str, str]] = []

    def hf_hub_download(repo: str, name: str, *, revision: str) -> str:
        asked.append((name, revision))
        return str(hub_cache / f"models--{repo.replace('/', '--')}" / "snapshots" / revision / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    folder, commit = get(revision="main")
    assert (folder.name, commit) == (COMMIT, COMMIT)
    assert sorted(asked) == [("config.json", COMMIT), ("model.safetensors", COMMIT)]


def _answer(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    """Let the Hub's listing give, or raise, `answer`."""

    def model_info(*args: object, **options: object) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
