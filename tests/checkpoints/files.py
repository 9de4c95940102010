"""Small checkpoints on disk, written byte by byte so that tests can also write them wrong."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from inference_server.checkpoints.native_weights import native_vectors

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I8": 1, "I64": 8, "F8_E4M3": 1}

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
    "vocab_size": 100,
    "eos_token_id": 2,
}


def write_safetensors(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """A valid file of zeros."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        num_bytes = ITEM_BYTES[dtype]
        for size in shape:
            num_bytes *= size
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + num_bytes]}
        end += num_bytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


def write_folder(folder: Path, config: dict[str, Any] | None = None, **side_files: object) -> Path:
    """A tiny llama-like checkpoint; `side_files` are JSON files by stem."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA if config is None else config))
    write_safetensors(
        folder / "model.safetensors",
        {
            "model.embed_tokens.weight": ("BF16", (100, 64)),
            "model.layers.0.self_attn.q_proj.weight": ("BF16", (64, 64)),
            "model.layers.0.input_layernorm.weight": ("BF16", (64,)),
            "lm_head.weight": ("BF16", (100, 64)),
        },
    )
    for stem, value in side_files.items():
        (folder / f"{stem}.json").write_text(json.dumps(value))
    return folder


NATIVE_LLAMA: dict[str, Any] = LLAMA | {
    "intermediate_size": 96,
    "head_dim": 32,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}


def write_native_folder(folder: Path, *, blocks: bool = False, dtype: str = "bfloat16") -> Path:
    """A whole tiny llama that the native kernels can run; `blocks`: also its layers in blocks of 4 bits."""
    folder.mkdir(parents=True, exist_ok=True)
    config = NATIVE_LLAMA | {"dtype": dtype}
    (folder / "config.json").write_text(json.dumps(config))
    stored = {"bfloat16": "BF16", "float32": "F32", "float16": "F16"}[dtype]
    shapes = {name: (length,) for name, length in native_vectors(config).items()} | _matrix_shapes(config)
    write_safetensors(folder / "model.safetensors", {name: (stored, shape) for name, shape in shapes.items()})
    if blocks:
        parts: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name, (rows, columns) in _matrix_shapes(config).items():
            if ".layers." in name:
                parts[f"{name}.codes"] = ("U8", (rows, columns // 2))
                parts |= {f"{name}.{kind}": ("F16", (rows, columns // 32)) for kind in ("scales", "minimums")}
        write_safetensors(folder / "blocks.safetensors", parts)
    return folder


def _matrix_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    inner = {"q_proj": (128, 64), "k_proj": (64, 64), "v_proj": (64, 64), "o_proj": (64, 128)}
    outer = {"gate_proj": (96, 64), "up_proj": (96, 64), "down_proj": (64, 96)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (100, 64)}
    for index in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{index}"
        shapes |= {f"{prefix}.self_attn.{name}.weight": shape for name, shape in inner.items()}
        shapes |= {f"{prefix}.mlp.{name}.weight": shape for name, shape in outer.items()}
    return shapes


def gguf_bytes(
    entries: list[tuple[str, bytes]], tensors: list[tuple[str, tuple[int, ...], int]], *, data: bytes
) -> bytes:
    """A GGUF file; `entries` are key and encoded value (type included), `tensors` name, dims and offset."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(entries))
    head += b"".join(_string(key) + value for key, value in entries)
    for name, dims, offset in tensors:
        head += _string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, 0, offset)
    return head + bytes(-len(head) % 32) + data


def gguf_string(text: str) -> bytes:
    """A string value."""
    return struct.pack("<I", 8) + _string(text)


def gguf_strings(texts: list[str]) -> bytes:
    """An array of strings."""
    return struct.pack("<IIQ", 9, 8, len(texts)) + b"".join(map(_string, texts))


def gguf_u32(value: int) -> bytes:
    """An unsigned integer."""
    return struct.pack("<II", 4, value)


def gguf_floats(values: list[float]) -> bytes:
    """An array of float32."""
    return struct.pack(f"<IIQ{len(values)}f", 9, 6, len(values), *values)


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()
