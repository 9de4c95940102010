from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_server.checkpoints.headers import TensorInfo, read_checkpoint, read_header, weight_files
from inference_server.errors import FetchFailed
from tests.checkpoints.files import write_safetensors


def test_names_types_shapes_and_bytes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"a": ("BF16", (2, 3)), "scale": ("F32", ())})
    assert read_header(path) == {"a": TensorInfo("BF16", (2, 3), 12), "scale": TensorInfo("F32", (), 4)}


def test_an_empty_checkpoint_is_valid(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", {})
    assert read_header(tmp_path / "a.safetensors") == {}


def test_a_file_cut_short_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"a": ("F32", (64,))})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FetchFailed, match="incomplete"):
        read_header(path)


def test_a_header_longer_than_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60))
    with pytest.raises(FetchFailed, match="no valid safetensors header"):
        read_header(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "BF16", "shape": [2], "data_offsets": [0, 2]},
        {"dtype": "WHAT", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "BF16", "shape": [-2], "data_offsets": [0, 4]},
        {"dtype": "BF16", "shape": [2]},
        {"dtype": "BF16", "shape": [2], "data_offsets": [4, 0]},
        7,
    ],
)
def test_an_entry_that_contradicts_itself_is_damage(tmp_path: Path, entry: object) -> None:
    text = json.dumps({"a": entry}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(FetchFailed, match="damaged"):
        read_header(tmp_path / "a.safetensors")


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(data)
    try:
        read_header(tmp_path / "a.safetensors")
    except FetchFailed:
        pass


def test_a_sharded_checkpoint_is_read_through_its_index(tmp_path: Path) -> None:
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        write_safetensors(tmp_path / name, {f"t{number}": ("F32", (number,))})
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps(
            {
                "metadata": {"total_size": 12},
                "weight_map": {f"t{n}": f"model-0000{n}-of-00002.safetensors" for n in (1, 2)},
            }
        )
    )
    assert set(read_checkpoint(tmp_path)) == {"t1", "t2"}
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FetchFailed, match="00002"):
        read_checkpoint(tmp_path)


def test_a_single_file_counts_before_an_index_as_it_does_in_transformers(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"single": ("F32", (1,))})
    write_safetensors(tmp_path / "model-00001-of-00001.safetensors", {"sharded": ("F32", (1,))})
    index = {"weight_map": {"sharded": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weight_files(tmp_path) == (tmp_path / "model.safetensors",)
    assert set(read_checkpoint(tmp_path)) == {"single"}


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\x"])
def test_an_index_never_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"t": name}}))
    with pytest.raises(FetchFailed, match="outside"):
        weight_files(tmp_path)


def test_a_folder_without_safetensors_has_no_tensors(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path) == {}
