"""What a model is for, before a request is spent on it."""

from __future__ import annotations

from typing import Literal

from inference_server.config.catalog import ModelSpec
from inference_server.errors import UnsupportedParameter
from inference_server.model_manager.plan import ModelPlan

_WANTED = {
    "generate": "does not generate text; it makes embeddings: use /v1/embeddings",
    "embed": "makes no embeddings; it generates text: use /v1/chat/completions or /v1/completions",
}


def check_task(spec: ModelSpec, plan: ModelPlan | None, task: Literal["generate", "embed"]) -> None:
    """Refuse a request that the model is not for. An entry of task "auto" without a plan may be for both.

    Raises:
        UnsupportedParameter: the model is for the other task.
    """
    known = spec.task if plan is None else plan.load.task
    if known not in ("auto", task):
        raise UnsupportedParameter(f"model {spec.name!r} {_WANTED[task]}", param="model")
