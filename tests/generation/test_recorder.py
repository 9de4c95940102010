"""What is written down of a request, by a clock that the test turns."""

from __future__ import annotations

import pytest

from inference_server.errors import WorkerDied
from inference_server.generation.recorder import RequestRecorder
from inference_server.telemetry.metrics import Metrics
from inference_server.tracing.timeline import CANCELLED, Timeline
from inference_server.types import FinishReason, Usage
from inference_server.worker.protocol import Progress


class Recorded:
    """A request that has just arrived."""

    def __init__(self) -> None:
        self.now_s = 10.0
        self.timeline = Timeline()
        self.recorder = RequestRecorder(Metrics(["m"]), "m", lambda: self.now_s, self.timeline)

    def after(self, seconds: float) -> RequestRecorder:
        self.now_s += seconds
        return self.recorder

    @property
    def phases(self) -> list[tuple[str, float]]:
        return [(phase.name, phase.end_s - phase.start_s) for phase in self.timeline.phases]


def test_a_wait_for_memory_is_queueing_and_what_is_done_for_the_model_is_not() -> None:
    request = Recorded()
    for seconds, stage in ((1, "download"), (2, "convert"), (3, "memory"), (4, "load"), (5, "warm-up")):
        request.after(seconds).loading(Progress(stage=stage))
    request.after(6).loaded()
    request.after(7).leased()
    request.after(0).used(Usage(prompt_tokens=1, completion_tokens=0))
    assert request.phases == [
        ("queue", 1),
        ("fetch", 2 + 3),
        ("queue", 4),
        ("load", 5 + 6),
        ("queue", 7),
        ("prefill", 0),
    ]


def test_several_answers_are_one_prefill_and_one_decode() -> None:
    request = Recorded()
    request.after(1).leased()
    answers = [request.recorder.submitted(), request.recorder.submitted()]
    for answer in (*answers, *answers):
        request.after(2)
        answer.tokens(1)
    for answer in answers:
        answer.finished(FinishReason.LENGTH, 2)
    request.after(0).used(Usage(prompt_tokens=3, completion_tokens=4, cached_tokens=2))
    assert request.phases == [("queue", 1), ("prefill", 2), ("decode", 6)]
    assert request.timeline.ttft_s == 3
    assert request.timeline.finish_reasons == ["length", "length"]
    assert (request.timeline.num_cached_tokens, request.timeline.num_output_tokens) == (2, 4)


@pytest.mark.parametrize("cancels", [True, False])
def test_an_end_before_its_time_closes_the_phase_and_says_why(cancels: bool) -> None:
    request = Recorded()
    request.after(1).leased()
    if cancels:
        request.after(2).cancelled()
    else:
        request.after(2).refused(WorkerDied("it is gone"))
    assert request.phases == [("queue", 1), ("prefill", 2)]
    assert request.timeline.error == (CANCELLED if cancels else "worker_died")
    assert request.timeline.model == "m"
