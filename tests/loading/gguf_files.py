"""A tiny llama as a GGUF file, with a byte-level vocabulary, merges and a chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
from tokenizers import pre_tokenizers

HIDDEN, HEADS, KV_HEADS, LAYERS, FEED_FORWARD = 64, 4, 2, 2, 96
Q4_0, Q4_1, Q5_0, Q8_0 = (
    gguf.GGMLQuantizationType.Q4_0,
    gguf.GGMLQuantizationType.Q4_1,
    gguf.GGMLQuantizationType.Q5_0,
    gguf.GGMLQuantizationType.Q8_0,
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r"]
CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def vocabulary() -> list[str]:
    """Special tokens, the byte alphabet, and what the merges make."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*SPECIALS, *alphabet, *(merge.replace(" ", "") for merge in MERGES)]


def write_gguf(
    path: Path,
    *,
    with_vocab_size: bool = True,
    seed: int = 0,
    architecture: str = "llama",
    heads: int = HEADS,
    kinds: Mapping[str, gguf.GGMLQuantizationType] = {},
    layers: int = LAYERS,
    describe: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> Path:
    """Random matrices in `kinds` by the end of their names ("attn_q"), Q4_1 elsewhere; vectors in float32.

    `layers`: how many of the layers are there; `describe` adds further metadata and tensors.
    """
    writer = gguf.GGUFWriter(path, architecture)
    tokens = vocabulary()
    writer.add_name("Tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // heads)
    if with_vocab_size:
        writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(tokens) - len(SPECIALS)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)
    _add_tensors(writer, len(tokens), np.random.default_rng(seed), kinds, layers)
    describe(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tensors(
    writer: gguf.GGUFWriter,
    vocab_size: int,
    random: np.random.Generator,
    kinds: Mapping[str, gguf.GGMLQuantizationType],
    layers: int,
) -> None:
    def add(name: str, *shape: int) -> None:
        values = random.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
            return
        kind = kinds.get(name.split(".")[-2], Q4_1)
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    kv = HIDDEN // 2
    add("token_embd.weight", vocab_size, HIDDEN)
    add("output_norm.weight", HIDDEN)
    for layer in range(layers):
        add(f"blk.{layer}.attn_norm.weight", HIDDEN)
        add(f"blk.{layer}.ffn_norm.weight", HIDDEN)
        if writer.arch == "qwen2":
            for part, size in (("q", HIDDEN), ("k", kv), ("v", kv)):
                add(f"blk.{layer}.attn_{part}.bias", size)
        add(f"blk.{layer}.attn_q.weight", HIDDEN, HIDDEN)
        add(f"blk.{layer}.attn_k.weight", kv, HIDDEN)
        add(f"blk.{layer}.attn_v.weight", kv, HIDDEN)
        add(f"blk.{layer}.attn_output.weight", HIDDEN, HIDDEN)
        add(f"blk.{layer}.ffn_gate.weight", FEED_FORWARD, HIDDEN)
        add(f"blk.{layer}.ffn_up.weight", FEED_FORWARD, HIDDEN)
        add(f"blk.{layer}.ffn_down.weight", HIDDEN, FEED_FORWARD)
