"""The matrices and vectors that the native CPU kernels hold: which format each matrix has, and its bytes.

One description for the plan, which only counts, and for the packing, which fills what was counted. The panel
layouts behind the byte figures are in `execution/native/tiles.py`. Pure; reads no tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from inference_server.checkpoints.headers import TensorInfo
from inference_server.checkpoints.native import GROUP, NativeShape, native_shape

FLOAT32, BFLOAT16, BITS_8, BITS_4 = 0, 1, 2, 3  # formats of a matrix, as the kernels number them
PANEL = 16  # outputs that are stored together; a last panel that is not full is filled up
ALIGNMENT = 64  # where a matrix begins in its arena: a cache line
# Bytes that one input of a whole panel takes; blocks include float16 scales (and minimums) per 32 inputs.
BYTES_PER_PANEL_INPUT: Mapping[int, int] = {
    FLOAT32: 4 * PANEL,
    BFLOAT16: 2 * PANEL,
    BITS_8: PANEL + 2 * PANEL // GROUP,
    BITS_4: PANEL // 2 + 4 * PANEL // GROUP,
}
FORMAT_OF_BITS: Mapping[int, int] = {8: BITS_8, 4: BITS_4}

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
FINAL_NORM = "model.norm.weight"
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_IGNORED_ENDINGS = (".rotary_emb.inv_freq",)  # tables that some old checkpoints store


@dataclass(frozen=True, slots=True)
class Matrix:
    """One packed matrix: the checkpoint's tensors `parts`, stacked by rows in this order."""

    name: str
    parts: tuple[str, ...]
    rows: int
    columns: int
    format: int

    @property
    def num_bytes(self) -> int:
        """Bytes when packed."""
        return packed_bytes(self.format, self.rows, self.columns)


@dataclass(frozen=True, slots=True)
class LayerMatrices:
    """A decoder layer's four matrices."""

    qkv: Matrix
    attention_out: Matrix
    gate_up: Matrix
    down: Matrix


@dataclass(frozen=True, slots=True)
class NativeWeights:
    """All matrices of a model; `head` is `embedding` itself where the two are tied."""

    layers: tuple[LayerMatrices, ...]
    embedding: Matrix
    head: Matrix

    def matrices(self) -> Iterator[Matrix]:
        """Each matrix once, in the order in which a step reads them."""
        for layer in self.layers:
            yield from (layer.qkv, layer.attention_out, layer.gate_up, layer.down)
        yield self.embedding
        if self.head is not self.embedding:
            yield self.head

    @property
    def arena_bytes(self) -> int:
        """Bytes of all packed matrices, each beginning at a multiple of ALIGNMENT."""
        return sum(aligned(matrix.num_bytes) for matrix in self.matrices())


def packed_bytes(format_: int, rows: int, columns: int) -> int:
    """Bytes of a packed matrix."""
    return -(-rows // PANEL) * columns * BYTES_PER_PANEL_INPUT[format_]


def aligned(num_bytes: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def native_weights(
    config: Mapping[str, Any], *, quantization: str, dtype: str, block_bits: Mapping[str, int]
) -> NativeWeights:
    """The matrices of a supported model.

    `block_bits` says which tensors the checkpoint holds in blocks, and of how many bits; only "gguf" looks at
    it. A matrix whose parts differ there, or lie in no blocks, is dense in `dtype`.
    """
    shape = native_shape(config)
    dense = {"float32": FLOAT32, "bfloat16": BFLOAT16}[dtype]

    def matrix(name: str, parts: tuple[str, ...], rows: int, columns: int, *, body: bool = True) -> Matrix:
        if quantization == "gguf":
            bits = {block_bits.get(part, 0) for part in parts}
            format_ = FORMAT_OF_BITS.get(bits.pop(), dense) if len(bits) == 1 else dense
        elif quantization == "int4" and body:
            format_ = BITS_4
        else:
            format_ = dense if quantization == "none" else BITS_8
        return Matrix(name, parts, rows, columns, format_)

    def layer(index: int) -> LayerMatrices:
        prefix = f"model.layers.{index}."
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        qkv = tuple(f"{attention}{part}_proj.weight" for part in "qkv")
        gate_up = tuple(f"{mlp}{part}_proj.weight" for part in ("gate", "up"))
        hidden, inner, queries = shape.hidden_size, shape.intermediate_size, shape.query_size
        return LayerMatrices(
            qkv=matrix(f"{attention}qkv", qkv, queries + 2 * shape.kv_size, hidden),
            attention_out=matrix(f"{attention}o", (f"{attention}o_proj.weight",), hidden, queries),
            gate_up=matrix(f"{mlp}gate_up", gate_up, 2 * inner, hidden),
            down=matrix(f"{mlp}down", (f"{mlp}down_proj.weight",), hidden, inner),
        )

    size = (shape.vocab_size, shape.hidden_size)
    embedding = matrix("embedding", (EMBEDDING,), *size, body=False)
    return NativeWeights(
        layers=tuple(layer(index) for index in range(shape.num_layers)),
        embedding=embedding,
        head=embedding if shape.tied else matrix("head", (HEAD,), *size, body=False),
    )


def native_vectors(config: Mapping[str, Any]) -> dict[str, int]:
    """Norm weights and biases of a supported model by their names in the checkpoint, and their lengths."""
    shape = native_shape(config)
    vectors: dict[str, int] = {FINAL_NORM: shape.hidden_size}
    norms = ["input_layernorm", "post_attention_layernorm"]
    if shape.branch_norms:
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    for index in range(shape.num_layers):
        prefix = f"model.layers.{index}."
        vectors |= {f"{prefix}{norm}.weight": shape.hidden_size for norm in norms}
        if shape.head_norms:
            vectors |= {f"{prefix}self_attn.{part}_norm.weight": shape.head_dim for part in "qk"}
        if shape.qkv_bias:
            vectors[f"{prefix}self_attn.q_proj.bias"] = shape.query_size
            vectors |= {f"{prefix}self_attn.{part}_proj.bias": shape.kv_size for part in "kv"}
    return vectors


def native_weight_bytes(
    config: Mapping[str, Any],
    *,
    quantization: str,
    dtype: str,
    block_bits: Mapping[str, int],
    max_model_len: int,
) -> int:
    """Bytes of a supported model's packed matrices, float32 vectors and rotary tables."""
    shape = native_shape(config)
    weights = native_weights(config, quantization=quantization, dtype=dtype, block_bits=block_bits)
    vectors = 4 * sum(native_vectors(config).values())
    tables = 4 * shape.num_ropes * max_model_len * shape.head_dim
    return weights.arena_bytes + vectors + tables


def unexpected_weights(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> str | None:
    """None if the checkpoint holds just what a supported config promises, else what differs."""
    shape = native_shape(config)
    if shape.num_layers > len(tensors):
        return f"config.json names {shape.num_layers} layers, the checkpoint has {len(tensors)} tensors"
    expected = _expected_shapes(config)
    for name, sizes in expected.items():
        found = tensors.get(name)
        if found is None:
            return f"the checkpoint has no {name}"
        if found.shape != sizes:
            return f"{name} has the shape {list(found.shape)} and not {list(sizes)}"
        if found.dtype not in _FLOATS:
            return f"{name} is stored as {found.dtype}"
    ignored = {HEAD} if shape.tied else set()
    extra = (name for name in tensors if name not in expected and name not in ignored)
    other = next((name for name in extra if not name.endswith(_IGNORED_ENDINGS)), None)
    return f"{other} has no place in the kernels" if other is not None else None


def _expected_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    shape = native_shape(config)
    sizes: dict[str, tuple[int, ...]] = {name: (length,) for name, length in native_vectors(config).items()}
    weights = native_weights(config, quantization="none", dtype="float32", block_bits={})
    for matrix in weights.matrices():
        rows = _part_rows(shape, matrix)
        sizes |= {part: (rows[part], matrix.columns) for part in matrix.parts}
    return sizes


def _part_rows(shape: NativeShape, matrix: Matrix) -> dict[str, int]:
    """How a stacked matrix's rows are divided among its parts."""
    if len(matrix.parts) == 3:
        return dict(zip(matrix.parts, (shape.query_size, shape.kv_size, shape.kv_size), strict=True))
    return {part: matrix.rows // len(matrix.parts) for part in matrix.parts}
