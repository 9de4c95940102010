"""Row 4: patterns, grammars and schemas that would take for ever or all memory; each ends soon."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from inference_server.engine.grammars import Grammars
from inference_server.errors import InvalidRequest
from inference_server.structured.grammars import MAX_GRAMMAR_CHARS, check_grammar
from inference_server.types import GrammarSpec
from tests.demo import demo_folder
from tests.server.running import resident_megabytes, running_server

LIMIT_S = 2.0
SLACK = 8  # for a machine that is busy with other tests; the fuel limits themselves count work, not time


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema, "b": schema}, "required": ["a"]}
    return schema


def objects(number: int) -> dict[str, Any]:
    kinds = [
        {"type": "object", "properties": {f"k{i}_{j}": {"type": "string"} for j in range(40)}}
        for i in range(number)
    ]
    return {"anyOf": kinds}


NAMES = [f"a{number}" for number in range(3000)]
ALTERNATIVES = "\n".join(["start: " + " | ".join(NAMES), *(f'{name}: "x"' for name in NAMES)])
CHOICES = json.dumps(["x" * 20 + str(number) for number in range(4000)])
BOMBS = {
    "nested quantifiers": GrammarSpec("regex", "(a+)+b", "guided_regex"),
    "parentheses": GrammarSpec("regex", "(" * 30_000 + "a" + ")" * 30_000, "guided_regex"),
    "repetition of repetition": GrammarSpec("regex", "((a{1,1000}){1,1000}){1,1000}", "guided_regex"),
    "large repetition": GrammarSpec("regex", "(x{0,100000}y?){0,100000}", "guided_regex"),
    "unicode classes": GrammarSpec("regex", r"(\w{1,500}\s){1,500}", "guided_regex"),
    "alternatives with a tail": GrammarSpec("regex", "(.*a){40}", "guided_regex"),
    "enum": GrammarSpec("json_schema", json.dumps({"enum": [f"v{i}" for i in range(70_000)]}), "guided_json"),
    "enum within the limit": GrammarSpec(
        "json_schema", json.dumps({"enum": [f"v{i}" for i in range(9_000)]}), "guided_json"
    ),
    "exponential object": GrammarSpec("json_schema", json.dumps(deep(10)), "guided_json"),
    "deep schema": GrammarSpec("json_schema", '{"items":' * 10_000 + "{}" + "}" * 10_000, "guided_json"),
    "many objects": GrammarSpec("json_schema", json.dumps(objects(80)), "guided_json"),
    "endless reference": GrammarSpec(
        "json_schema", '{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/a"}}}', "guided_json"
    ),
    "long array": GrammarSpec("json_schema", '{"type":"array","minItems":1000000000}', "guided_json"),
    "long string": GrammarSpec("json_schema", '{"type":"string","maxLength":1000000000}', "guided_json"),
    "ambiguous grammar": GrammarSpec("grammar", 'start: a\na: a a | "x"', "guided_grammar"),
    "many rules": GrammarSpec("grammar", ALTERNATIVES, "guided_grammar"),
    "many choices": GrammarSpec("choice", CHOICES, "guided_choice"),
}


@pytest.mark.model
@pytest.mark.parametrize("name", BOMBS)
def test_row_4_each_is_compiled_or_refused_in_time(name: str) -> None:
    grammars = Grammars(demo_folder(), vocab_size=49152, eos_token_ids=(2,))
    grammars.constrain(GrammarSpec("regex", "a", "guided_regex")).result()  # reads the tokenizer
    started_s = time.process_time()
    refusal: InvalidRequest | None = None
    try:
        check_grammar(BOMBS[name])
        grammars.constrain(BOMBS[name]).result(timeout=60)
    except InvalidRequest as error:
        refusal = error
    assert time.process_time() - started_s < LIMIT_S * SLACK
    if refusal is not None:
        assert refusal.param == BOMBS[name].param
        assert len(refusal.message) < 500


MEMORY_SCRIPT = """
import resource, sys
from inference_server.engine.grammars import Grammars
from inference_server.structured.grammars import check_grammar
from inference_server.errors import InvalidRequest
from inference_server.types import GrammarSpec
from tests.demo import demo_folder
from tests.security.test_row_04_grammar_bombs import BOMBS
grammars = Grammars(demo_folder(), vocab_size=49152, eos_token_ids=(2,))
grammars.constrain(GrammarSpec("regex", "a", "guided_regex")).result()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for bomb in BOMBS.values():
    try:
        check_grammar(bomb)
        grammars.constrain(bomb).result()
    except InvalidRequest:
        pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.model
def test_row_4_all_of_them_together_take_less_than_256_mib() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 256


def test_row_4_what_is_too_long_is_refused_unread() -> None:
    with pytest.raises(InvalidRequest, match="the limit is"):
        check_grammar(GrammarSpec("regex", "a" * (MAX_GRAMMAR_CHARS + 1), "guided_regex"))


@pytest.mark.model
def test_row_4_the_server_answers_400_or_200_lives_and_does_not_grow(tmp_path: Path) -> None:
    config = tmp_path / "models.yaml"
    config.write_text(
        f"models: {{m: {{source: {demo_folder()}, max_model_len: 256, preload: true}}}}", encoding="utf-8"
    )
    with running_server(config) as server:
        server.chat("warm", model="m", max_tokens=1, guided_regex="a")
        (worker,) = [pid for pid in server.children() if resident_megabytes(pid) > 250][-1:]
        for bomb in BOMBS.values():
            field = bomb.param
            value = json.loads(bomb.text) if bomb.kind == "choice" else bomb.text
            response = server.chat("hi", model="m", max_tokens=2, **{field: value})
            assert response.status_code in (200, 400), response.text
        before = resident_megabytes(server.process.pid)
        for bomb in BOMBS.values():
            value = json.loads(bomb.text) if bomb.kind == "choice" else bomb.text
            server.chat("hi", model="m", max_tokens=2, **{bomb.param: value})
        assert resident_megabytes(server.process.pid) - before <= 10
        assert worker in server.children()
        assert server.chat("hi", model="m", max_tokens=2).status_code == 200
