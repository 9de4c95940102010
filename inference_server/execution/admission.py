"""The self-test that a model passes before it is served.

Our attention function gets the whole batch of requests as one flat sequence. A model that builds its own
mask, keeps a recurrent state or attends elsewhere would not fail on it: it would silently let one request
attend to another. So each model is probed at load, and refused with the reason if anything is odd.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from inference_server.errors import ModelLoadFailed
from inference_server.execution.attention.binding import attention_modules, bind
from inference_server.execution.attention.contract import AttentionCall
from inference_server.execution.kv_cache import LayerShape

# Keyword arguments that transformers' models pass along and that change nothing for us.
KNOWN_ARGUMENTS = frozenset(
    {"position_ids", "use_cache", "output_router_logits", "output_attentions", "is_causal", "cache_position"}
)
SERVABLE_LAYERS = frozenset({"full_attention", "sliding_attention"})
PROBE_LENGTHS = (7, 5)  # tokens of the two probe sequences
# Largest accepted difference between a ragged and a lone run, in standard deviations of the logits.
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.25, torch.float16: 0.1}


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What the probe saw of one attention layer."""

    modules: tuple[nn.Module, ...]
    shape: LayerShape
    window: int | None


class _Recorder:
    """A binding that notes each call and attends within the probe's own two sequences."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, nn.Module, AttentionCall]] = []
        self.problems: list[str] = []
        self.lengths: tuple[int, ...] = ()

    def for_module(self, module: nn.Module) -> Any:
        def call(call: AttentionCall, mask: torch.Tensor | None, extra: dict[str, Any]) -> torch.Tensor:
            if mask is not None:
                self.problems.append("it builds an attention mask of its own")
            unknown = sorted(k for k, v in extra.items() if k not in KNOWN_ARGUMENTS and v is not None)
            if unknown:
                self.problems.append(f"its attention takes arguments we do not know: {', '.join(unknown)}")
            self.calls.append((int(module.layer_idx), module, call))  # type: ignore[arg-type]
            return _attend(call, self.lengths)

        return call


def probe(model: nn.Module, config: Any, device: torch.device, dtype: torch.dtype) -> list[LayerFacts]:
    """Run the self-test and return one entry per attention layer, in order of layer index.

    Raises:
        ModelLoadFailed: the model cannot be served on flat ragged batches; the message says why.
    """
    _check_layer_types(config)
    recorder = _Recorder()
    modules = attention_modules(model)
    for module in modules:
        bind(module, recorder.for_module(module))
    sequences = _probe_sequences(config, device)
    together = _logits(model, recorder, sequences)
    ragged_calls = list(recorder.calls)
    facts = _layer_facts(ragged_calls, config)
    if recorder.problems:
        raise _refused(recorder.problems[0])
    alone = torch.cat([_logits(model, recorder, [sequence]) for sequence in sequences])
    _check_apart(together, alone, dtype)
    return facts


def _check_layer_types(config: Any) -> None:
    layer_types = getattr(config, "layer_types", None) or ()
    others = sorted(set(layer_types) - SERVABLE_LAYERS)
    if others:
        raise _refused(f"it has layers of type {', '.join(others)}, which keep state that is not paged")


def _probe_sequences(config: Any, device: torch.device) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, int(config.vocab_size), (length,), generator=generator).to(device)
        for length in PROBE_LENGTHS
    ]


@torch.inference_mode()
def _logits(model: nn.Module, recorder: _Recorder, sequences: list[torch.Tensor]) -> torch.Tensor:
    """One flat forward over `sequences` → [num_tokens, vocab_size], float32."""
    recorder.calls.clear()
    recorder.lengths = tuple(len(sequence) for sequence in sequences)
    ids = torch.cat(sequences)[None]
    positions = torch.cat([torch.arange(len(s), device=s.device) for s in sequences])[None]
    output = model(input_ids=ids, position_ids=positions, use_cache=False)
    return output.logits[0].float()  # type: ignore[no-any-return]


def _layer_facts(calls: list[tuple[int, nn.Module, AttentionCall]], config: Any) -> list[LayerFacts]:
    indices = sorted(index for index, _, _ in calls)
    expected = list(range(int(config.num_hidden_layers)))
    if indices != expected:
        raise _refused(
            f"{len(indices)} of its layers' attention calls reached us, {len(expected)} were expected "
            "(one per layer)"
        )
    facts = []
    for index, module, call in sorted(calls, key=lambda entry: entry[0]):
        shape = LayerShape(call.key.shape[1], call.key.shape[2], call.value.shape[2])
        facts.append(LayerFacts((module,), shape, layer_window(index, call.window, config)))
    return facts


def layer_window(index: int, passed: int | None, config: Any) -> int | None:
    """The layer's sliding window from its configuration, which the passed one must not contradict.

    A key that the family's configuration does not have stands in config.json without effect: its model does
    not look at it, and nor do we, unless the layer passes a window.

    Raises:
        ModelLoadFailed: they contradict each other.
    """
    is_set = passed is not None or _has(config, "sliding_window")
    window = getattr(config, "sliding_window", None) if is_set else None
    if _has(config, "use_sliding_window") and config.use_sliding_window is False:
        window = None
    layer_types = config.layer_types if _has(config, "layer_types") else None
    if layer_types and layer_types[index] != "sliding_attention":
        window = None
    if passed is not None and passed != window:
        raise _refused(f"layer {index} attends with a window of {passed}, its configuration says {window}")
    return window


def _has(config: Any, name: str) -> bool:
    """Whether the family's configuration has this setting, and not only this config.json."""
    family = type(config)
    declared = hasattr(family, name) or name in getattr(family, "attribute_map", {})
    return (declared or name in inspect.signature(family).parameters) and hasattr(config, name)


def _check_apart(together: torch.Tensor, alone: torch.Tensor, dtype: torch.dtype) -> None:
    scale = float(alone.std())
    worst = float((together - alone).abs().max())
    if not worst <= TOLERANCE[dtype] * max(scale, 1e-6):  # also refuses NaN
        raise _refused(
            f"two requests in a batch change each other's logits by {worst:.3g} (their spread is {scale:.3g})"
        )


def _attend(call: AttentionCall, lengths: tuple[int, ...]) -> torch.Tensor:
    """Plain attention within each probe sequence, in float32."""
    outputs = []
    group = call.query.shape[1] // call.key.shape[1]
    for query, key, value in zip(
        *(torch.split(part, list(lengths)) for part in (call.query, call.key, call.value)), strict=True
    ):
        keys = key.float().repeat_interleave(group, dim=1)
        values = value.float().repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", query.float(), keys) * call.scale
        if call.softcap is not None:
            scores = torch.tanh(scores / call.softcap) * call.softcap
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if call.window is not None:
            allowed = allowed.triu(1 - call.window)
        scores = scores.masked_fill(~allowed, float("-inf"))
        if call.sinks is not None:
            sinks = call.sinks.float().view(-1, 1, 1).expand(-1, scores.shape[1], 1)
            weights = torch.cat([scores, sinks], dim=-1).softmax(-1)[..., :-1]
        else:
            weights = scores.softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, values))
    return torch.cat(outputs).to(call.query.dtype)


def _refused(reason: str) -> ModelLoadFailed:
    return ModelLoadFailed(f"the model did not pass its self-test: {reason}; it cannot be served")
