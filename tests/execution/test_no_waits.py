"""Nothing between a batch and its choice asks the device for a number: each such question would be a wait.

On a CPU those questions cost nothing and go unnoticed, so they are looked for among the operations.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.execution.triton_here import require_triton

require_triton()

from inference_server.scheduling.batch import Batch, ScheduledSequence  # noqa: E402
from tests.engine.tiny_models import FAMILIES, save_tiny_model  # noqa: E402
from tests.execution.device_runs import build_runner, make_runner  # noqa: E402
from tests.execution.paged import make_sequence  # noqa: E402

# Operations whose result, or whose result's size, the host needs before it can go on.
WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique", "equal", "bincount")


class NoWaits(TorchDispatchMode):
    """Fails at an operation that waits for the device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().removeprefix("aten::").split(".")[0]
        boolean_index = name in ("index", "index_put", "index_put_") and any(
            part is not None and part.dtype in (torch.bool, torch.uint8) for part in args[1]
        )
        if any(name.startswith(wait) for wait in WAITS) or boolean_index:
            raise AssertionError(f"{function.name()} waits for the device")
        return function(*args, **(kwargs or {}))


def decode(number: int, *, carries: bool = False, **sampling: Any) -> ScheduledSequence:
    sequence = make_sequence([3, 4, 5, 6, 7], num_prompt_tokens=2, name=f"r{number}", **sampling)
    sequence.block_ids = [number]
    return ScheduledSequence(sequence, 5 if carries else 4, 1, True, carries=carries)


def batch_of(*items: ScheduledSequence) -> Batch:
    return Batch(scheduled=items, preempted=())


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(request.param, tmp_path_factory.mktemp(f"tiny-{request.param}"))


def test_the_watch_notices_a_wait() -> None:
    for wait in (
        lambda x: x.max().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
    ):
        with pytest.raises(AssertionError, match="waits"), NoWaits():
            wait(torch.randn(4))


def test_a_decode_of_every_family_can_be_captured(folder: Path) -> None:
    """What a graph would record, for a model fused as on a GPU."""
    runner = build_runner(folder, is_fused=True)
    assert runner.graphs is not None
    with NoWaits(), torch.inference_mode():
        runner.graphs._compute(2)


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "drawn": {"temperature": 0.8, "seed": 1},
    "filtered": {"temperature": 1.0, "top_k": 5, "top_p": 0.9, "min_p": 0.01},
    "penalized": {"temperature": 0.0, "repetition_penalty": 1.2, "presence_penalty": 0.5, "min_tokens": 9},
}


@pytest.mark.parametrize("sampling", SETTINGS.values(), ids=list(SETTINGS))
@pytest.mark.parametrize("with_graphs", [False, True])
def test_no_launch_waits(
    sampling: dict[str, Any], with_graphs: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    runner = make_runner(llama_folder(tmp_path_factory), with_graphs=with_graphs)
    prompt = make_sequence([5] * 20, name="long", **sampling)
    prompt.block_ids = [5, 6]
    with NoWaits():
        runner.launch(batch_of(decode(0, **sampling), decode(1, temperature=1.0)))
        runner.launch(batch_of(decode(0, carries=True, **sampling), decode(1, carries=True, temperature=1.0)))
        pending = runner.launch(batch_of(decode(2, **sampling), ScheduledSequence(prompt, 0, 20, True)))
    assert len(pending.tokens()) == 2


_LLAMA: list[Path] = []


def llama_folder(factory: pytest.TempPathFactory) -> Path:
    if not _LLAMA:
        _LLAMA.append(save_tiny_model("llama", factory.mktemp("tiny-llama-waits")))
    return _LLAMA[0]
