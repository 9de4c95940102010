"""Cold prefill with torch's variable-length flash attention, where this torch has it and gets it right.

A cold chunk attends to nothing but itself, so keys and values need no block table. What the function takes
differs between torch releases, and what it computes is not taken on trust: the first call of each kind is
compared with the Triton kernel's result on the same numbers.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch

from inference_server.execution.attention.contract import AttentionCall
from inference_server.execution.paged_step import Region

MIN_TOKENS = 256  # new tokens of a cold chunk from which on this pays
MAX_HEAD_DIM = 256
TOLERANCE = 0.05  # largest accepted difference, in standard deviations of the values; half precision
Function = Callable[..., Any]
Kind = tuple[int, int, int, int, int | None, bool, torch.dtype]
logger = logging.getLogger(__name__)


def find_function() -> Function | None:
    """torch's function, or None where this release has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    found: Function = varlen_attn
    return found


class VarlenAttention:
    """Remembers per kind of call whether the function computes what it should. Owner: the backend."""

    def __init__(self, function: Function) -> None:
        self._function = function
        parameters = inspect.signature(function).parameters
        self._extra = {"enable_gqa": True} if "enable_gqa" in parameters else {}
        self._returns_lse = "return_aux" in parameters
        self._verdicts: dict[Kind, bool] = {}

    def attend(
        self, call: AttentionCall, region: Region, expected: Callable[[], torch.Tensor]
    ) -> torch.Tensor | None:
        """The region's attention → [num_tokens, num_heads, value_dim], or None where it is not to be trusted.

        `expected` computes the same otherwise; it is called once per kind of call, and its result compared.
        """
        if not self._takes(call):
            return None
        kind: Kind = (
            call.query.shape[1],
            call.key.shape[1],
            call.query.shape[2],
            call.value.shape[2],
            call.window,
            call.sinks is not None,
            call.query.dtype,
        )
        verdict = self._verdicts.get(kind)
        if verdict is None:
            return self._try(kind, call, region, expected)
        return self._compute(call, region) if verdict else None

    def _takes(self, call: AttentionCall) -> bool:
        key_dim, value_dim = call.query.shape[2], call.value.shape[2]
        return (
            call.softcap is None
            and (call.sinks is None or self._returns_lse)
            and call.query.dtype in (torch.bfloat16, torch.float16)
            and key_dim <= MAX_HEAD_DIM
            and key_dim % 8 == 0
            and value_dim <= key_dim
            and call.query.shape[1] % call.key.shape[1] == 0
        )

    def _try(
        self, kind: Kind, call: AttentionCall, region: Region, expected: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        reference = expected()
        try:
            found = self._compute(call, region)
            difference = float((found.float() - reference.float()).abs().max())
            spread = float(reference.float().std())
            trusted = difference <= TOLERANCE * max(spread, 1e-6)
            reason = f"differs by {difference:.3g}"
        except (RuntimeError, TypeError, ValueError) as error:
            trusted, reason = False, f"fails ({type(error).__name__}: {error})"
        self._verdicts[kind] = trusted
        if trusted:
            logger.info("cold prefill uses torch's variable-length attention for %s", kind)
        else:
            logger.warning(
                "torch's variable-length attention %s for %s; our own kernel is used", reason, kind
            )
        return reference

    def _compute(self, call: AttentionCall, region: Region) -> torch.Tensor:
        rows = slice(region.first_row, region.last_row)
        query, key, value = call.query[rows], call.key[rows], call.value[rows]
        value_dim, key_dim = value.shape[2], key.shape[2]
        if value_dim < key_dim:
            value = torch.nn.functional.pad(value, (0, key_dim - value_dim))
        arguments: dict[str, Any] = dict(self._extra)
        if call.sinks is not None:
            from torch.nn.attention.varlen import AuxRequest

            arguments["return_aux"] = AuxRequest(lse=True)
        starts, longest = region.query_starts, region.max_query_len
        left = -1 if call.window is None else call.window - 1  # theirs leaves the token itself out
        result = self._function(
            query.contiguous(),
            key.contiguous(),
            value.contiguous(),
            starts,
            starts,
            longest,
            longest,
            scale=call.scale,
            window_size=(left, 0),
            **arguments,
        )
        if call.sinks is None:
            attended: torch.Tensor = result
        else:
            attended = _with_sinks(result[0], result[1], call.sinks)
        return attended[..., :value_dim]


def _with_sinks(attended: torch.Tensor, lse: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """A sink takes its share of the softmax and gives nothing: exact from the log-sum-exp alone.

    lse [num_heads, num_tokens] in one release's order, or the other way round in another's.
    """
    num_tokens, num_heads, _ = attended.shape
    if lse.shape != (num_tokens, num_heads):
        lse = lse.transpose(0, 1)
    share = torch.sigmoid(lse.float() - sinks.float()[None, :])
    return (attended.float() * share[..., None]).to(attended.dtype)
