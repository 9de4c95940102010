"""Answers of the real small model under a grammar: always texts of it, beside free ones."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from tokenizers import Tokenizer

from inference_server.engine import grammars as grammars_module
from inference_server.engine.grammars import Grammars
from inference_server.engine.text_engine import TextEngine
from inference_server.errors import SleepUnsupported, UnsupportedParameter
from inference_server.scheduling.constraint import Constraint
from inference_server.types import FinishReason, GenerationRequest, GrammarSpec, SamplingParams, TokenDelta
from tests.demo import demo_folder
from tests.engine.reference import build_engine

pytestmark = pytest.mark.model
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
ENDLESS = '{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}'
JSON = GrammarSpec("json_schema", json.dumps(SCHEMA), "response_format")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(demo_folder() / "tokenizer.json"))


@pytest.fixture(scope="module", params=["native", "torch"])
def engine(request: pytest.FixtureRequest) -> TextEngine:
    return build_engine(
        demo_folder(), kernels=request.param, dtype="bfloat16" if request.param == "native" else "float32",
        max_model_len=512, kv_cache_tokens=4096,
    )  # fmt: skip


def ask(engine: TextEngine, name: str, grammar: GrammarSpec | None, **sampling: object) -> None:
    ids = Tokenizer.from_file(str(demo_folder() / "tokenizer.json")).encode("Describe a person: ").ids
    wanted = {"max_tokens": 100, "temperature": 1.0, "seed": 3, **sampling}
    engine.submit(
        GenerationRequest(
            request_id=name,
            prompt_token_ids=tuple(ids),
            sampling=SamplingParams(grammar=grammar, **wanted),  # type: ignore[arg-type]
        )
    )


def finish(engine: TextEngine) -> Iterator[tuple[list[TokenDelta], dict[str, str]]]:
    deltas: list[TokenDelta] = []
    failures: dict[str, str] = {}
    while engine.has_work:
        outcome = engine.step()
        deltas += outcome.deltas
        failures |= {failure.request_id: failure.message for failure in outcome.failures}
    yield deltas, failures


def texts(engine: TextEngine, tokenizer: Tokenizer) -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """Text and finish reason of each request, and the messages of those that failed."""
    ((deltas, failures),) = finish(engine)
    tokens: dict[str, list[int]] = {}
    reasons: dict[str, FinishReason] = {}
    for delta in deltas:
        tokens.setdefault(delta.request_id, []).extend(delta.token_ids)
        if delta.finish_reason is not None:
            reasons[delta.request_id] = delta.finish_reason
    return {name: (tokenizer.decode(ids), reasons[name]) for name, ids in tokens.items()}, failures


def test_every_kind_of_grammar_is_kept_to_in_one_batch(engine: TextEngine, tokenizer: Tokenizer) -> None:
    wanted = {
        "json": JSON,
        "regex": GrammarSpec("regex", r"[A-Z][a-z]{2,5} \d{4}", "guided_regex"),
        "choice": GrammarSpec("choice", '["left", "right, or so"]', "guided_choice"),
        "lark": GrammarSpec("grammar", 'start: "x=" /[0-9]+/ ";"', "guided_grammar"),
        "gbnf": GrammarSpec("grammar", 'root ::= "yes" | "no"', "guided_grammar"),
        "free": None,
    }
    for name, grammar in wanted.items():
        ask(engine, name, grammar, **({"max_tokens": 5} if grammar is None else {}))
    answers, failures = texts(engine, tokenizer)
    assert failures == {}
    person = json.loads(answers["json"][0])
    assert set(person) - {"tags"} == {"name", "age"}
    assert 0 <= person["age"] <= 120
    assert re.fullmatch(r"[A-Z][a-z]{2,5} \d{4}", answers["regex"][0])
    assert answers["choice"][0] in ("left", "right, or so")
    assert re.fullmatch(r"x=[0-9]+;", answers["lark"][0]) or answers["lark"][1] == "length"
    assert answers["gbnf"][0] in ("yes", "no")
    assert all(answers[name][1] == "stop" for name in ("json", "regex", "choice", "gbnf"))


def test_an_answer_that_is_cut_short_says_so(engine: TextEngine, tokenizer: Tokenizer) -> None:
    ask(engine, "cut", JSON, max_tokens=4)
    answers, _ = texts(engine, tokenizer)
    assert answers["cut"][1] == "length"
    assert answers["cut"][0].startswith('{"name": ')


def test_answers_to_one_grammar_go_their_own_ways(engine: TextEngine, tokenizer: Tokenizer) -> None:
    for seed in range(8):
        ask(engine, str(seed), JSON, seed=seed)
    answers, failures = texts(engine, tokenizer)
    assert failures == {}
    assert len({text for text, _ in answers.values()}) > 4
    for text, reason in answers.values():
        assert reason == "stop"
        json.loads(text)


def test_a_seeded_answer_is_repeated_whatever_else_is_in_the_batch(
    engine: TextEngine, tokenizer: Tokenizer
) -> None:
    ask(engine, "alone", JSON)
    alone, _ = texts(engine, tokenizer)
    for name in ("other", "again"):
        ask(engine, name, JSON if name == "again" else None, **({} if name == "again" else {"seed": 9}))
    beside, _ = texts(engine, tokenizer)
    assert beside["again"] == alone["alone"]


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (GrammarSpec("regex", "(?=a)b", "guided_regex"), "guided_regex: this regular expression"),
        (GrammarSpec("grammar", "start: a a: ", "guided_grammar"), "guided_grammar: this grammar"),
        (
            GrammarSpec("json_schema", '{"$ref": "http://127.0.0.1/x"}', "response_format"),
            "response_format: this JSON schema",
        ),
        (
            GrammarSpec("json_schema", '{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}', "f"),
            "f: ",
        ),
    ],
)
def test_a_wrong_grammar_fails_its_request_and_nothing_else(
    engine: TextEngine, tokenizer: Tokenizer, grammar: GrammarSpec, words: str
) -> None:
    ask(engine, "wrong", grammar)
    ask(engine, "free", None, max_tokens=3)
    answers, failures = texts(engine, tokenizer)
    assert failures["wrong"].startswith(words)
    assert list(answers) == ["free"]


def test_the_failure_names_the_field_that_holds_the_wrong_grammar(engine: TextEngine) -> None:
    ask(engine, "wrong", GrammarSpec("regex", "(?=a)b", "guided_regex"))
    params = []
    while engine.has_work:
        params += [failure.param for failure in engine.step().failures]
    assert params == ["guided_regex"]


class Held(Grammars):
    """A compiler that waits to be told."""

    def __init__(self, inner: Grammars) -> None:
        self._inner = inner
        self.futures: list[tuple[GrammarSpec, Future[Constraint]]] = []

    def constrain(self, spec: GrammarSpec, tenant: str = "") -> Future[Constraint]:
        future: Future[Constraint] = Future()
        self.futures.append((spec, future))
        return future

    def release(self) -> None:
        for spec, future in self.futures:
            future.set_result(self._inner.constrain(spec).result())


def test_others_go_on_while_a_grammar_is_compiled_and_who_left_is_forgotten(tokenizer: Tokenizer) -> None:
    engine = build_engine(demo_folder(), kernels="native", dtype="bfloat16", max_model_len=512)
    held = Held(engine._compiling._compiler)  # type: ignore[arg-type]
    engine._compiling._compiler = held
    ask(engine, "waits", JSON)
    ask(engine, "leaves", JSON)
    ask(engine, "free", None, max_tokens=5, ignore_eos=True)
    with pytest.raises(SleepUnsupported):
        engine.sleep()
    free: list[int] = []
    for _ in range(5):
        free += [token for delta in engine.step().deltas for token in delta.token_ids]
    assert len(free) == 5
    assert engine.abort("leaves")
    assert not engine.abort("leaves")
    started_s = time.monotonic()
    assert engine.has_work
    assert engine.step().deltas == ()
    assert time.monotonic() - started_s < 5  # it waits a little, and not for the compiler
    held.futures = [held.futures[0]]
    held.release()
    answers, failures = texts(engine, tokenizer)
    assert (list(answers), failures) == (["waits"], {})
    json.loads(answers["waits"][0])


def test_an_engine_without_a_compiler_refuses_by_name(engine: TextEngine) -> None:
    compiler, engine._compiling._compiler = engine._compiling._compiler, None
    try:
        with pytest.raises(UnsupportedParameter, match="response_format"):
            ask(engine, "r", JSON)
    finally:
        engine._compiling._compiler = compiler


def test_compiled_grammars_are_kept_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars_module, "MAX_COMPILED", 2)
    grammars = Grammars(demo_folder(), vocab_size=49152, eos_token_ids=(2,))
    first = [GrammarSpec("regex", f"[a-z]{{{n}}}", "guided_regex") for n in (1, 2, 3)]
    for spec in (*first, first[1], first[0]):
        grammars.constrain(spec).result()
    assert list(grammars._compiled) == [first[1], first[0]]
