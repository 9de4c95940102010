"""The data that kernels read and write: a model's weights and shape, a step's batch, its scratch memory.

Everything that differs between architectures is a number here, so that there is one step for all of them.
Named tuples, because Numba passes them to compiled code as they are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BLOCK = 16  # tokens of a KV block: one vector of keys
NONE = -1  # "no such vector", in any offset

# Columns of `Model.matrices`: one row per matrix.
FORMAT, OFFSET, ROWS, COLUMNS = 0, 1, 2, 3

# Columns of `Model.layers`: one row per layer. Vectors are offsets into `Model.vectors`, or NONE.
INPUT_NORM = 0  # before attention
AFTER_ATTENTION_NORM = 1  # on attention's output, before it is added to the residual (Gemma)
MLP_NORM = 2  # before the MLP
AFTER_MLP_NORM = 3  # on the MLP's output (Gemma)
QUERY_NORM = 4  # per head (Qwen3, Gemma)
KEY_NORM = 5
QKV_BIAS = 6  # (Qwen2)
ROPE = 7  # offset into `Model.rope`
WINDOW = 8  # tokens that a query sees, itself included; 0: all
QKV, ATTENTION_OUT, GATE_UP, DOWN = 9, 10, 11, 12  # rows of `Model.matrices`
NUM_LAYER_FIELDS = 13

SILU, GELU_TANH = 0, 1


class Model(NamedTuple):
    """A model as the kernels see it.

    arena     uint8 [bytes]: packed matrices (layouts: tiles.py)
    matrices  int64 [num_matrices, 4]
    vectors   float32 [n]: norm weights and biases
    rope      float32 [n]: per table [position][cosines, sines][head_dim / 2]
    layers    int64 [num_layers, NUM_LAYER_FIELDS]
    embedding, head, final_norm: matrix, matrix, vector
    """

    arena: np.ndarray
    matrices: np.ndarray
    vectors: np.ndarray
    rope: np.ndarray
    layers: np.ndarray
    embedding: int
    head: int
    final_norm: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    activation: int
    norm_epsilon: float
    attention_scale: float
    embedding_scale: float

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(
            array.nbytes for array in (self.arena, self.matrices, self.vectors, self.rope, self.layers)
        )


class Batch(NamedTuple):
    """One step's tokens, sequence after sequence, as flat rows.

    tokens, positions  int64 [num_rows]
    sequence           int64 [num_rows]: which row of `block_tables` a token belongs to
    block_tables       int64 [num_seqs, width]
    tiles              int64 [num_tiles, 2]: rows [first, last) of one sequence that share an attention task
    sample_rows        int64 [num_samples]
    """

    tokens: np.ndarray
    positions: np.ndarray
    sequence: np.ndarray
    block_tables: np.ndarray
    tiles: np.ndarray
    sample_rows: np.ndarray


class Scratch(NamedTuple):
    """Memory of one step, for at most `max_rows` rows. Contents do not outlive a step.

    hidden     float32 [max_rows, hidden_size]: the residual stream
    branch     float32 [max_rows, hidden_size]: output of a branch that is normalised before it is added
    inputs     float32 [max_rows, widest]: inputs of the next matrix
    quantized  int16 [max_rows, widest]: the same, per row scaled to 16 bits
    factors    float32 [max_rows]: what one unit of `quantized` is worth
    sums       float32 [max_rows, widest / 32]: sums of each 32 values of `quantized`
    qkv        float32 [max_rows, (num_heads + 2 num_kv_heads) head_dim]
    attention  float32 [max_rows, num_heads * head_dim]
    gate_up    float32 [max_rows, 2 * intermediate_size]
    queries, scores, values, maxima: per thread, for one attention task (see attention.py)
    """

    hidden: np.ndarray
    branch: np.ndarray
    inputs: np.ndarray
    quantized: np.ndarray
    factors: np.ndarray
    sums: np.ndarray
    qkv: np.ndarray
    attention: np.ndarray
    gate_up: np.ndarray
    queries: np.ndarray
    scores: np.ndarray
    values: np.ndarray
    maxima: np.ndarray
