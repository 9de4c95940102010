"""The scripted model does what its options say, over the real scheduler."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from inference_server.checkpoints.scripted import IM_END_ID, write_scripted_folder
from inference_server.checkpoints.sources import ScriptedSource, parse_source
from inference_server.engine.scripted import build_scripted_engine
from inference_server.engine.text_engine import TextEngine
from inference_server.errors import HelixFlowError, InsufficientMemory, ModelLoadFailed
from inference_server.types import FinishReason, GenerationRequest, SamplingParams, Speculation
from tests.engine.reference import engine_spec, greedy_request, run_to_end, tokens_of


def build(
    cache: Path,
    source: str,
    stages: list[tuple[str, float | None]] | None = None,
    speculation: Speculation | None = None,
) -> TextEngine:
    parsed = parse_source(source)
    assert isinstance(parsed, ScriptedSource)
    spec = engine_spec(write_scripted_folder(parsed, cache), scripted=True, speculation=speculation)
    noted = [] if stages is None else stages
    return build_scripted_engine(spec, lambda stage, fraction: noted.append((stage, fraction)))[0]


def generate(engine: TextEngine, sampling: SamplingParams) -> tuple[bytes, FinishReason | None]:
    engine.submit(GenerationRequest(request_id="r", prompt_token_ids=(72, 105), sampling=sampling))
    deltas = run_to_end(engine)["r"]
    return bytes(token for token in tokens_of(deltas) if token < 256), deltas[-1].finish_reason


def test_it_recites_its_reply_over_and_over_and_then_ends(tmp_path: Path) -> None:
    engine = build(tmp_path, "scripted:?reply=abc&output_tokens=7")
    assert generate(engine, SamplingParams(max_tokens=100)) == (b"abcabca", FinishReason.STOP)
    assert generate(engine, SamplingParams(max_tokens=5)) == (b"abcab", FinishReason.LENGTH)


def test_min_tokens_and_ignore_eos_are_respected(tmp_path: Path) -> None:
    engine = build(tmp_path, "scripted:?reply=ab&output_tokens=2")
    assert generate(engine, SamplingParams(max_tokens=9, min_tokens=5))[0] == b"ababa"
    assert generate(engine, SamplingParams(max_tokens=9, ignore_eos=True)) == (
        b"ababababa",
        FinishReason.LENGTH,
    )


def test_its_last_token_is_the_end_of_sequence(tmp_path: Path) -> None:
    engine = build(tmp_path, "scripted:?output_tokens=1")
    engine.submit(
        GenerationRequest(request_id="r", prompt_token_ids=(1,), sampling=SamplingParams(max_tokens=9))
    )
    assert tokens_of(run_to_end(engine)["r"])[-1] == IM_END_ID


def test_a_scripted_failure_fails_one_batch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = build(tmp_path, "scripted:?fail_step=2&reply=xy")
    engine.submit(greedy_request("r", [1, 2], 5))
    assert not engine.step().failures
    with caplog.at_level(logging.CRITICAL, logger="inference_server.engine.text_engine"):
        outcome = engine.step()
    assert [failure.request_id for failure in outcome.failures] == ["r"]
    assert outcome.fatal is None
    assert generate(engine, SamplingParams(max_tokens=3)) == (b"xyx", FinishReason.LENGTH)


@pytest.mark.parametrize("fault", ["oom", "error"])
@pytest.mark.parametrize(("stage", "num_before"), [("prefill", 0), ("decode", 2)])
def test_a_prompt_may_ask_for_a_fault_of_its_own_batch(
    tmp_path: Path, fault: str, stage: str, num_before: int, caplog: pytest.LogCaptureFixture
) -> None:
    engine = build(tmp_path, "scripted:?prompt_faults=1&reply=xy")
    engine.submit(greedy_request("r", list(f"fault:{fault}:{stage}".encode()), 5))
    with caplog.at_level(logging.CRITICAL, logger="inference_server.engine.text_engine"):
        outcomes = [engine.step() for _ in range(num_before + 1)]
    assert [len(outcome.deltas) for outcome in outcomes] == [1] * num_before + [0]
    code = {"oom": "insufficient_memory", "error": "internal_error"}[fault]
    assert [(failed.request_id, failed.code) for failed in outcomes[-1].failures] == [("r", code)]
    assert generate(engine, SamplingParams(max_tokens=3)) == (b"xyx", FinishReason.LENGTH)


def test_without_the_option_no_prompt_brings_about_anything(tmp_path: Path) -> None:
    engine = build(tmp_path, "scripted:?reply=xy")
    engine.submit(greedy_request("r", list(b"fault:kill:prefill"), 2))
    assert bytes(tokens_of(run_to_end(engine)["r"])) == b"xy"


def test_a_file_says_how_the_next_load_goes_wrong(tmp_path: Path) -> None:
    file = tmp_path / "fault"
    source = f"scripted:?load_fault_file={file}"
    assert build(tmp_path, source).step_stats().num_running == 0
    for text, error in (("oom", MemoryError), ("error", RuntimeError), ("flood", ModelLoadFailed)):
        file.write_text(text)
        with pytest.raises(error):
            build(tmp_path, source)
    file.unlink()
    assert build(tmp_path, source).step_stats().num_running == 0


@pytest.mark.parametrize("options", ["max_in_flight=2", "max_in_flight=2&step_ms=1"])
def test_with_two_steps_in_flight_it_recites_the_same(tmp_path: Path, options: str) -> None:
    engine = build(tmp_path, f"scripted:?reply=abc&output_tokens=7&{options}")
    assert generate(engine, SamplingParams(max_tokens=100)) == (b"abcabca", FinishReason.STOP)
    assert generate(engine, SamplingParams(max_tokens=5)) == (b"abcab", FinishReason.LENGTH)


@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_guesses_at_a_repeating_reply_are_right_and_save_steps(tmp_path: Path, max_in_flight: int) -> None:
    engine = build(
        tmp_path,
        f"scripted:?reply=abcde&output_tokens=200&max_in_flight={max_in_flight}",
        speculation=Speculation(max_draft_tokens=8),
    )
    engine.submit(greedy_request("r", [72, 105], 100))
    num_steps = 0
    tokens: list[int] = []
    while engine.has_work:
        outcome = engine.step()
        num_steps += 1
        tokens += [token for delta in outcome.deltas for token in delta.token_ids]
        engine.check_integrity()
    assert bytes(tokens) == b"abcde" * 20
    stats = engine.step_stats()
    assert stats.num_accepted_tokens == stats.num_draft_tokens > 60
    assert num_steps < 40


def test_loading_shows_progress(tmp_path: Path) -> None:
    stages: list[tuple[str, float | None]] = []
    build(tmp_path, "scripted:?load_ms=20", stages)
    fractions = [fraction for stage, fraction in stages if stage == "load" and fraction is not None]
    assert len(fractions) == 20
    assert fractions == sorted(fractions)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("load_error=oom", InsufficientMemory),
        ("load_error=failed", ModelLoadFailed),
        ("unheard_of=1", ModelLoadFailed),
        ("step_ms=soon", ModelLoadFailed),
        ("max_in_flight=3", ModelLoadFailed),
    ],
)
def test_load_errors_come_as_scripted(tmp_path: Path, options: str, error: type[HelixFlowError]) -> None:
    with pytest.raises(error):
        build(tmp_path, f"scripted:?{options}")
