"""Flash attention is used where it says what our kernel says, and nowhere else; a stand-in for it here."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from inference_server.execution.attention.contract import AttentionCall
from inference_server.execution.attention.varlen import VarlenAttention
from inference_server.execution.paged_step import Region

LENGTHS = (5, 9, 3)
HEADS, KV_HEADS, DIM = 6, 2, 16


def plain(call: AttentionCall) -> torch.Tensor:
    """Attention of each sequence to itself, sinks included."""
    outputs = []
    parts = (torch.split(tensor.float(), list(LENGTHS)) for tensor in (call.query, call.key, call.value))
    for query, key, value in zip(*parts, strict=True):
        scores, values = _scores(query, key, value, call.scale, call.window)
        if call.sinks is not None:
            sinks = call.sinks.float().view(-1, 1, 1).expand(-1, scores.shape[1], 1)
            weights = torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
        else:
            weights = scores.softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, values))
    return torch.cat(outputs).to(call.query.dtype)


def _scores(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    group = query.shape[1] // key.shape[1]
    keys, values = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", query, keys) * scale
    allowed = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if window is not None:
        allowed = allowed.triu(1 - window)
    return scores.masked_fill(~allowed, float("-inf")), values


class Flash:
    """torch's function as its releases have it; counts its calls. `error` spoils its result."""

    def __init__(self, *, error: float = 0.0, heads_last: bool = False) -> None:
        self.num_calls = 0
        self.error = error
        self.heads_last = heads_last

    def compute(self, query: Any, key: Any, value: Any, starts: Any, **settings: Any) -> Any:
        self.num_calls += 1
        assert query.is_contiguous()
        assert value.shape == key.shape
        left, right = settings["window_size"]
        assert right == 0
        outputs, sums = [], []
        for first, last in zip(starts.tolist(), starts.tolist()[1:], strict=False):
            rows = slice(first, last)
            scores, values = _scores(
                query[rows].float(),
                key[rows].float(),
                value[rows].float(),
                settings["scale"],
                None if left < 0 else left + 1,
            )
            outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), values))
            sums.append(scores.logsumexp(-1))
        attended = (torch.cat(outputs) + self.error).to(query.dtype)
        lse = torch.cat(sums, dim=1)
        wanted = settings.get("return_aux")
        return (attended, lse.transpose(0, 1) if self.heads_last else lse) if wanted else attended

    def of_2_11(
        self,
        query: Any,
        key: Any,
        value: Any,
        cu_seq_q: Any,
        cu_seq_k: Any,
        max_q: int,
        max_k: int,
        *,
        return_aux: Any = None,
        scale: Any = None,
        window_size: Any = (-1, -1),
    ) -> Any:
        return self.compute(
            query, key, value, cu_seq_q, return_aux=return_aux, scale=scale, window_size=window_size
        )

    def of_2_13(
        self,
        query: Any,
        key: Any,
        value: Any,
        cu_seq_q: Any,
        cu_seq_k: Any,
        max_q: int,
        max_k: int,
        *,
        return_aux: Any = None,
        scale: Any = None,
        window_size: Any = (-1, -1),
        enable_gqa: bool = False,
    ) -> Any:
        if not enable_gqa and query.shape[1] != key.shape[1]:
            raise ValueError("Expect query and key/value to have the same number of heads")
        return self.compute(
            query, key, value, cu_seq_q, return_aux=return_aux, scale=scale, window_size=window_size
        )


def make_call(**changes: Any) -> AttentionCall:
    generator = torch.Generator().manual_seed(1)
    dtype = changes.pop("dtype", torch.bfloat16)
    value_dim = changes.pop("value_dim", DIM)

    def noise(*dims: int) -> torch.Tensor:
        return torch.randn(dims, generator=generator).to(dtype)

    fields: dict[str, Any] = {
        "query": noise(sum(LENGTHS), HEADS, DIM),
        "key": noise(sum(LENGTHS), KV_HEADS, DIM),
        "value": noise(sum(LENGTHS), KV_HEADS, value_dim),
        "scale": DIM**-0.5,
        "window": None,
        "softcap": None,
        "sinks": None,
    }
    return AttentionCall(**(fields | changes))


def region() -> Region:
    starts = torch.tensor([0, 5, 14, 17], dtype=torch.int32)
    lengths = torch.tensor(LENGTHS, dtype=torch.int32)
    return Region(0, sum(LENGTHS), max(LENGTHS), starts, lengths, torch.arange(3, dtype=torch.int32))


def call_nothing() -> torch.Tensor:
    raise AssertionError("asked for a result to compare with")


CALLS = {
    "plain": {},
    "window": {"window": 4},
    "sinks": {"sinks": torch.randn(HEADS)},
    "window and sinks": {"window": 3, "sinks": torch.randn(HEADS)},
    "narrow values": {"value_dim": 8},
}


@pytest.mark.parametrize("changes", CALLS.values(), ids=list(CALLS))
@pytest.mark.parametrize("release", ["of_2_11", "of_2_13"])
@pytest.mark.parametrize("heads_last", [False, True])
def test_what_it_computes_is_the_same_as_our_kernel_does(
    changes: dict[str, Any], release: str, heads_last: bool
) -> None:
    flash, call = Flash(heads_last=heads_last), make_call(**changes)
    varlen = VarlenAttention(getattr(flash, release))
    asked: list[int] = []

    def expected() -> torch.Tensor:
        asked.append(1)
        return plain(call)

    for _ in range(3):
        found = varlen.attend(call, region(), expected)
        assert found is not None
        torch.testing.assert_close(found.float(), plain(call).float(), rtol=0.02, atol=0.02)
    assert (flash.num_calls, len(asked)) == (3, 1)


@pytest.mark.parametrize("changes", [{"softcap": 3.0}, {"dtype": torch.float32}, {"value_dim": 24}], ids=str)
def test_what_it_cannot_do_is_not_asked_of_it(changes: dict[str, Any]) -> None:
    flash = Flash()
    assert VarlenAttention(flash.of_2_13).attend(make_call(**changes), region(), call_nothing) is None
    assert flash.num_calls == 0


def test_a_function_that_is_wrong_is_not_used_again(caplog: pytest.LogCaptureFixture) -> None:
    flash, call = Flash(error=0.7), make_call()
    varlen = VarlenAttention(flash.of_2_13)
    with caplog.at_level(logging.WARNING):
        first = varlen.attend(call, region(), lambda: plain(call))
    assert first is not None
    assert torch.equal(first, plain(call))
    assert "differs" in caplog.text
    assert varlen.attend(call, region(), lambda: plain(call)) is None
    assert flash.num_calls == 1


def test_a_function_that_fails_is_not_used_again(caplog: pytest.LogCaptureFixture) -> None:
    def fails(*tensors: Any, scale: float, window_size: Any) -> torch.Tensor:
        raise RuntimeError("no kernel image")

    varlen, call = VarlenAttention(fails), make_call()
    with caplog.at_level(logging.WARNING):
        first = varlen.attend(call, region(), lambda: plain(call))
    assert first is not None
    assert "no kernel image" in caplog.text
    assert varlen.attend(call, region(), lambda: plain(call)) is None
