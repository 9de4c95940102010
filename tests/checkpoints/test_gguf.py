from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_server.checkpoints.gguf import ArrayLength, GgufTensor, read_gguf_header
from inference_server.errors import FetchFailed
from tests.checkpoints.files import gguf_bytes, gguf_floats, gguf_string, gguf_strings, gguf_u32

ENTRIES = [
    ("general.architecture", gguf_string("llama")),
    ("llama.block_count", gguf_u32(2)),
    ("tokenizer.ggml.tokens", gguf_strings(["a", "é", ""])),
    ("tokenizer.ggml.scores", gguf_floats([0.5, 1.0])),
]
GOOD = gguf_bytes(ENTRIES, [("a", (4, 2), 0), ("b", (8,), 32)], data=bytes(64))


def read(tmp_path: Path, data: bytes):  # type: ignore[no-untyped-def]
    (tmp_path / "x.gguf").write_bytes(data)
    return read_gguf_header(tmp_path / "x.gguf")


def test_metadata_and_tensors_are_found(tmp_path: Path) -> None:
    header = read(tmp_path, GOOD)
    assert header.architecture == "llama"
    assert header.metadata["llama.block_count"] == 2
    assert header.metadata["tokenizer.ggml.tokens"] == ArrayLength(3)
    assert header.metadata["tokenizer.ggml.scores"] == ArrayLength(2)
    assert (header.num_parameters, header.file_bytes) == (16, len(GOOD))
    assert header.data_start == len(GOOD) - 64
    assert header.tensors == {
        "a": GgufTensor(kind=0, shape=(2, 4), start=header.data_start),
        "b": GgufTensor(kind=0, shape=(8,), start=header.data_start + 32),
    }


@pytest.mark.parametrize("length", [0, 3, 20, 60, 120, len(GOOD) - 60])
def test_a_file_cut_short_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(FetchFailed):
        read(tmp_path, GOOD[:length])


@pytest.mark.parametrize(
    "data",
    [
        b"GGML" + GOOD[4:],
        GOOD[:4] + b"\x01\x00\x00\x00" + GOOD[8:],
        gguf_bytes([("x", gguf_u32(1))], [], data=b""),
        gguf_bytes([*ENTRIES, ("general.alignment", gguf_u32(0))], [], data=b""),
        gguf_bytes([*ENTRIES, ("general.alignment", gguf_u32(24))], [], data=b""),
        gguf_bytes([("general.architecture", gguf_strings(["llama"]))], [], data=b""),
    ],
)
def test_what_is_no_gguf_file_of_ours_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(FetchFailed, match="GGUF"):
        read(tmp_path, data)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=8))
def test_damage_anywhere_is_read_or_refused(tmp_path: Path, position: int, noise: bytes) -> None:
    data = bytearray(GOOD)
    data[position : position + len(noise)] = noise
    try:
        read(tmp_path, bytes(data))
    except FetchFailed:
        pass
