"""The self-test accepts a model that keeps sequences apart and refuses every way of not doing so."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from inference_server.errors import ModelLoadFailed
from inference_server.execution.admission import LayerFacts, layer_window, probe
from inference_server.execution.attention.binding import attention_function
from tests.execution.paged import CPU

VOCAB_SIZE, WIDTH, NUM_HEADS = 23, 16, 4


@dataclass(frozen=True)
class Habits:
    """What a fake model does, good or bad."""

    num_layers: int = 2
    layer_types: tuple[str, ...] | None = None
    config_window: int | None = None
    use_sliding_window: bool | None = None
    passed_window: int | None = None
    softcap: float | None = None
    with_sinks: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    builds_mask: bool = False
    leaks: float = 0.0  # how much of the row before is mixed into each row
    silent_layers: tuple[int, ...] = ()
    calls_twice: bool = False
    gives_nan: bool = False


class FakeAttention(nn.Module):
    """Calls the attention interface as transformers' modules do."""

    def __init__(self, layer_idx: int, habits: Habits) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.habits = habits
        self.projection = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        habits, num_tokens = self.habits, hidden.shape[1]
        if self.layer_idx in habits.silent_layers:
            return hidden.cumsum(dim=1)  # a recurrent state
        query, key, value = (
            part.view(1, num_tokens, NUM_HEADS, -1).transpose(1, 2)
            for part in self.projection(hidden).chunk(3, dim=-1)
        )
        mask = torch.zeros(1, 1, num_tokens, num_tokens) if habits.builds_mask else None
        for _ in range(2 if habits.calls_twice else 1):
            attended, _ = attention_function(
                self,
                query,
                key[:, :2],
                value[:, :2],
                mask,
                scaling=0.5,
                sliding_window=habits.passed_window,
                softcap=habits.softcap,
                s_aux=torch.ones(NUM_HEADS) if habits.with_sinks else None,
                **habits.extra,
            )
        return attended.reshape(1, num_tokens, WIDTH)


class FakeModel(nn.Module):
    """A causal language model of two lines."""

    def __init__(self, habits: Habits) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.habits = habits
        self.embedding = nn.Embedding(VOCAB_SIZE, WIDTH)
        self.layers = nn.ModuleList(FakeAttention(index, habits) for index in range(habits.num_layers))
        self.head = nn.Linear(WIDTH, VOCAB_SIZE)

    def forward(self, *, input_ids: torch.Tensor, position_ids: torch.Tensor, use_cache: bool) -> Any:
        hidden = self.embedding(input_ids) + position_ids[..., None].sin()
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        hidden = hidden + self.habits.leaks * hidden.roll(1, dims=1)
        if self.habits.gives_nan:
            hidden = hidden * float("nan")
        return SimpleNamespace(logits=self.head(hidden))


class FakeConfig(SimpleNamespace):
    """A family that knows windows."""

    layer_types = sliding_window = use_sliding_window = None


def run_probe(habits: Habits) -> list[LayerFacts]:
    config = FakeConfig(vocab_size=VOCAB_SIZE, num_hidden_layers=habits.num_layers)
    config.layer_types, config.sliding_window = habits.layer_types, habits.config_window
    if habits.use_sliding_window is not None:
        config.use_sliding_window = habits.use_sliding_window
    return probe(FakeModel(habits), config, CPU, torch.float32)


@pytest.mark.parametrize(
    "habits",
    [
        Habits(),
        Habits(num_layers=5),
        Habits(softcap=3.0),
        Habits(with_sinks=True),
        Habits(config_window=3, passed_window=3),
        Habits(extra={"position_ids": torch.arange(2), "use_cache": False, "unheard_of": None}),
    ],
)
def test_a_model_that_keeps_sequences_apart_is_accepted(habits: Habits) -> None:
    facts = run_probe(habits)
    assert [entry.modules[0].layer_idx for entry in facts] == list(range(habits.num_layers))
    shape = facts[0].shape
    assert (shape.num_kv_heads, shape.key_dim, shape.value_dim) == (2, 4, 4)


@pytest.mark.parametrize(
    ("habits", "windows"),
    [
        (Habits(), [None, None]),
        (Habits(config_window=4), [4, 4]),
        (Habits(config_window=4, use_sliding_window=False), [None, None]),
        (Habits(config_window=4, layer_types=("full_attention", "sliding_attention")), [None, 4]),
    ],
)
def test_a_layers_window_comes_from_the_configuration(habits: Habits, windows: list[int | None]) -> None:
    assert [entry.window for entry in run_probe(habits)] == windows


_FULL, _SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize(
    ("config", "window"),
    [
        (LlamaConfig(sliding_window=8), None),
        (LlamaConfig(num_hidden_layers=1, sliding_window=8, layer_types=[_SLIDING]), None),
        (MistralConfig(sliding_window=8), 8),
        (
            MistralConfig(
                num_hidden_layers=1, sliding_window=8, layer_types=[_FULL], use_sliding_window=False
            ),
            8,
        ),
        (MistralConfig(sliding_window=None), None),
        (Qwen2Config(sliding_window=8), None),
        (Qwen2Config(sliding_window=8, use_sliding_window=True, max_window_layers=0), 8),
        (Qwen3Config(sliding_window=8, use_sliding_window=True, max_window_layers=0), 8),
        (Qwen3Config(sliding_window=8, use_sliding_window=True, max_window_layers=9), None),
        (Gemma2Config(num_hidden_layers=1, sliding_window=8, layer_types=[_SLIDING]), 8),
        (Gemma3TextConfig(num_hidden_layers=1, sliding_window=8, layer_types=[_FULL]), None),
        (Phi3Config(sliding_window=8), 8),
        (GptOssConfig(num_hidden_layers=1, sliding_window=8, layer_types=[_SLIDING]), 8),
        (GPT2Config(sliding_window=8), None),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_a_window_counts_only_in_families_that_have_windows(config: Any, window: int | None) -> None:
    assert layer_window(0, None, config) == window


def test_a_window_that_a_layer_passes_counts_in_any_family() -> None:
    assert layer_window(0, 8, LlamaConfig(sliding_window=8)) == 8


def test_a_configuration_of_the_models_own_code_has_what_it_takes_by_name() -> None:
    class Own(PretrainedConfig):
        def __init__(self, sliding_window: int | None = None, **rest: Any) -> None:
            super().__init__(**rest)
            self.sliding_window = sliding_window

    assert layer_window(0, None, Own(sliding_window=8)) == 8


GOOD = Habits()
REFUSED = {
    "a mask of its own": (replace(GOOD, builds_mask=True), "mask of its own"),
    "unknown arguments": (replace(GOOD, extra={"alibi": torch.ones(1)}), "do not know: alibi"),
    "a layer that keeps a state": (replace(GOOD, silent_layers=(1,)), "1 of its layers.* 2 were expected"),
    "no attention at all": (replace(GOOD, silent_layers=(0, 1)), "0 of its layers"),
    "two calls per layer": (replace(GOOD, calls_twice=True), "4 of its layers"),
    "hybrid layer types": (replace(GOOD, layer_types=("full_attention", "mamba")), "of type mamba"),
    "a leak": (replace(GOOD, leaks=0.5), "change each other's logits"),
    "a small leak": (replace(GOOD, leaks=0.02), "change each other's logits"),
    "logits that are no numbers": (replace(GOOD, gives_nan=True), "change each other's logits"),
    "another window": (replace(GOOD, config_window=8, passed_window=4), "window of 4.* says 8"),
    "an unannounced window": (replace(GOOD, passed_window=4), "window of 4.* says None"),
}


@pytest.mark.parametrize(("habits", "reason"), REFUSED.values(), ids=list(REFUSED))
def test_a_model_that_might_mix_sequences_is_refused_with_the_reason(habits: Habits, reason: str) -> None:
    with pytest.raises(ModelLoadFailed, match=reason):
        run_probe(habits)
