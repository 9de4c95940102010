"""What the plan says of the demo model against what its engine holds, for every way to run it on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference_server.config.catalog import ModelSpec
from inference_server.config.settings import Settings
from inference_server.engine.assembly import build_text_engine
from inference_server.model_manager.devices import cpu_flags
from inference_server.model_manager.plan import plan_model
from tests.demo import demo_folder

MAX_ERROR = 0.001  # the goal is 5 %; nothing here is an estimate
QUICK = [("gguf", "native"), ("int8", "native")]
SLOW = [
    ("int4", "native"),
    ("none", "native"),
    ("none", "torch"),
    ("bnb-nf4", "torch"),
    ("bnb-int8", "torch"),
]


@pytest.fixture(scope="module")
def folder() -> Path:
    return demo_folder()


@pytest.mark.filterwarnings("ignore")  # bitsandbytes on a CPU
@pytest.mark.parametrize(
    ("quantization", "kernels"), [*QUICK, *(pytest.param(*way, marks=pytest.mark.slow) for way in SLOW)]
)
def test_weights_and_kv_cache_are_foretold_to_a_thousandth(
    folder: Path, quantization: str, kernels: str
) -> None:
    wanted = "torch" if kernels == "torch" else "auto"
    spec = ModelSpec(
        name="m", source=str(folder), quantization=quantization, kernels=wanted, max_model_len=512
    )
    plan = plan_model(spec, folder, Settings(), {"cpu": 1 << 40}, cpu_flags())
    assert plan.load.kernels == kernels
    _, facts = build_text_engine(plan.load, lambda stage, fraction: None)
    memory = facts.memory
    assert abs(plan.weights_bytes / memory.weights_bytes - 1) < MAX_ERROR
    assert abs(plan.kv_cache_bytes / memory.kv_cache_bytes - 1) < MAX_ERROR
