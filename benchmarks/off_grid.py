"""A checkpoint that computes the same function with other weights, to judge quantization fairly.

The demo model's weights come from a GGUF file: in each block of 32 they lie on a grid of 16 steps, so
that any 4-bit scheme with the same blocks looks lossless on them. A Llama computes the same with its hidden
units in another order, and with a unit's scale moved from what makes it into the matrix that reads it:

residual stream   one order for all layers; a norm's weight against the columns of the matrices after it
values            an order and scales per head, in v's rows against o's columns
MLP               an order, and scales in up's rows against down's columns

After that the weights of a block come from many blocks, so they lie on no grid. Knows Llama's tensor names.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from inference_server.checkpoints.block_headers import BLOCKS_NAME
from inference_server.checkpoints.facts import read_config
from inference_server.checkpoints.headers import SINGLE_NAME
from inference_server.checkpoints.native import NativeShape, native_shape

LARGEST_SCALE = 1.25  # and its inverse: about as much as neighbouring units of trained models differ anyway

Tensors = dict[str, torch.Tensor]


def write_off_grid(folder: Path, out: Path, *, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write the changed checkpoint of a Llama `folder` into `out`, stored as `dtype`."""
    config = read_config(folder)
    if config["model_type"] != "llama":
        raise ValueError("this knows how to move scales in Llama only")
    tensors = {name: tensor.float() for name, tensor in load_file(folder / SINGLE_NAME).items()}
    move_off_grid(tensors, native_shape(config), torch.Generator().manual_seed(seed))
    out.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name not in (SINGLE_NAME, BLOCKS_NAME):
            shutil.copy(path, out / path.name)
    stored = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    save_file(stored, out / SINGLE_NAME, metadata={"format": "pt"})
    return out


def move_off_grid(tensors: Tensors, shape: NativeShape, random: torch.Generator) -> None:
    """Change the float32 tensors in place; the model's function stays what it was."""
    order = torch.randperm(shape.hidden_size, generator=random)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            tensors[name] = tensors[name][:, order]
    tensors["model.norm.weight"] = tensors["model.norm.weight"][order]
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}."
        _reorder_residual(tensors, prefix, order)
        _scale_norm(tensors, f"{prefix}input_layernorm", f"{prefix}self_attn.", ("q", "k", "v"), random)
        _scale_norm(tensors, f"{prefix}post_attention_layernorm", f"{prefix}mlp.", ("gate", "up"), random)
        _move_values(tensors, f"{prefix}self_attn.", shape, random)
        _move_mlp(tensors, f"{prefix}mlp.", shape, random)


def _reorder_residual(tensors: Tensors, prefix: str, order: torch.Tensor) -> None:
    for name in ("self_attn.q", "self_attn.k", "self_attn.v", "mlp.gate", "mlp.up"):
        key = f"{prefix}{name}_proj.weight"
        tensors[key] = tensors[key][:, order]
    for key in (f"{prefix}self_attn.o_proj.weight", f"{prefix}mlp.down_proj.weight"):
        tensors[key] = tensors[key][order]
    for norm in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"{prefix}{norm}.weight"] = tensors[f"{prefix}{norm}.weight"][order]


def _scale_norm(
    tensors: Tensors, norm: str, prefix: str, readers: tuple[str, ...], random: torch.Generator
) -> None:
    """Divide the norm's weight and multiply the columns that read it."""
    weight = tensors[f"{norm}.weight"]
    scales = _scales(weight.numel(), random)
    tensors[f"{norm}.weight"] = weight / scales
    for reader in readers:
        tensors[f"{prefix}{reader}_proj.weight"] *= scales


def _move_values(tensors: Tensors, prefix: str, shape: NativeShape, random: torch.Generator) -> None:
    """v's rows and o's columns; the query heads of a group read the same values."""
    order = torch.stack([torch.randperm(shape.head_dim, generator=random) for _ in range(shape.num_kv_heads)])
    scales = _scales(shape.kv_size, random).view(shape.num_kv_heads, shape.head_dim)
    rows = (order + shape.head_dim * torch.arange(shape.num_kv_heads)[:, None]).reshape(-1)
    group = shape.num_heads // shape.num_kv_heads
    read_order, read_scales = order.repeat_interleave(group, 0), scales.repeat_interleave(group, 0)
    columns = (read_order + shape.head_dim * torch.arange(shape.num_heads)[:, None]).reshape(-1)
    key, reader = f"{prefix}v_proj.weight", f"{prefix}o_proj.weight"
    tensors[key] = tensors[key][rows] * scales.reshape(-1, 1)
    tensors[reader] = tensors[reader][:, columns] / read_scales.reshape(-1)


def _move_mlp(tensors: Tensors, prefix: str, shape: NativeShape, random: torch.Generator) -> None:
    """gate and up share an order; up's scale passes through the product, gate's would not."""
    order = torch.randperm(shape.intermediate_size, generator=random)
    scales = _scales(shape.intermediate_size, random)
    gate, up, down = (f"{prefix}{name}_proj.weight" for name in ("gate", "up", "down"))
    tensors[gate] = tensors[gate][order]
    tensors[up] = tensors[up][order] * scales[:, None]
    tensors[down] = tensors[down][:, order] / scales


def _scales(count: int, random: torch.Generator) -> torch.Tensor:
    """Evenly spread on a logarithmic scale from 1 / LARGEST_SCALE to LARGEST_SCALE."""
    return LARGEST_SCALE ** (2 * torch.rand(count, generator=random) - 1)
