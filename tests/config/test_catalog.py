"""models.yaml: what it may say, what is refused, and how models are found."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from inference_server.config.catalog import (
    Catalog,
    KvCacheSpec,
    MemorySpec,
    ModelSpec,
    SamplingDefaults,
    load_catalog,
    parse_catalog,
    temporary_model,
)
from inference_server.errors import ConfigError, UnknownModel

WORDS = [
    "source",
    "aliases",
    "kv_cache",
    "tokens",
    "bytes",
    "defaults",
    "temperature",
    "keep_alive",
    "gpu",
    "m",
]
FULL = """
memory: {gpu: 40GiB, host: 50%}
defaults: {keep_alive: 10m, max_model_len: 4096, dtype: bfloat16}
models:
  small:
    source: org/small
    revision: abc123
    quantization: bnb-nf4
    device: cuda:1
    aliases: [gpt-3.5-turbo, org/small]
    task: generate
    preload: true
    pinned: true
    max_model_len: 2048
    kv_cache: 1GiB
    keep_alive: -1
    trust_remote_code: true
    allow_pickle: true
    speculation: prompt-lookup
    max_draft_tokens: 5
    max_drafting_seqs: 2
    defaults: {temperature: 0.7, top_k: 40, max_tokens: 100}
  large: {source: org/large, kv_cache: {tokens: 65536}}
"""


def parse(text: str, **env: str) -> Catalog:
    return parse_catalog(text, origin="models.yaml", env=env)


def problem(text: str, **env: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, **env)
    return caught.value.message


def problem_in_model(line: str) -> str:
    return problem(f"models:\n  m:\n    source: org/name\n    {line}\n")


def test_every_key_reaches_its_field() -> None:
    catalog = parse(FULL)
    assert catalog.memory == MemorySpec(gpu_fraction=None, gpu_bytes=40 * 1024**3, host_fraction=0.5)
    assert catalog.models["small"] == ModelSpec(
        name="small",
        source="org/small",
        revision="abc123",
        quantization="bnb-nf4",
        device="cuda:1",
        dtype="bfloat16",
        aliases=("gpt-3.5-turbo", "org/small"),
        task="generate",
        preload=True,
        pinned=True,
        max_model_len=2048,
        kv_cache=KvCacheSpec(num_bytes=1024**3),
        keep_alive_s=None,
        trust_remote_code=True,
        allow_pickle=True,
        speculation="prompt-lookup",
        max_draft_tokens=5,
        max_drafting_seqs=2,
        defaults=SamplingDefaults(temperature=0.7, top_k=40, max_tokens=100),
    )


def test_defaults_fill_in_what_a_model_does_not_say() -> None:
    large = parse(FULL).models["large"]
    assert (large.keep_alive_s, large.max_model_len, large.dtype) == (600.0, 4096, "bfloat16")
    assert large.kv_cache == KvCacheSpec(num_tokens=65536)


@pytest.mark.parametrize("text", ["", "# nothing\n", "models:\n", "memory:\nmodels: {}\n"])
def test_an_empty_file_is_an_empty_catalog_with_the_default_budget(text: str) -> None:
    assert parse(text) == Catalog(models={}, memory=MemorySpec(gpu_fraction=0.9))


def test_the_shared_memory_can_be_given_as_share_or_size() -> None:
    assert parse("memory: {gpu: 80%}").memory.gpu_fraction == pytest.approx(0.8)
    assert parse("memory: {gpu: 0.8, host: 16GiB}").memory == MemorySpec(
        gpu_fraction=0.8, host_bytes=16 * 1024**3
    )


# ---------------------------------------------------------------- errors


def test_an_unknown_key_is_refused_with_its_line_and_the_nearest_key() -> None:
    message = problem("models:\n  m:\n    source: a/b\n    quantisation: none\n")
    assert message == (
        "models.yaml, line 4: unknown key `models.m.quantisation`; did you mean `quantization`?"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {}", "did you mean `models`?"),
        ("memory: {gpus: 1GiB}", "unknown key `memory.gpus`; did you mean `gpu`?"),
        ("defaults: {keepalive: 1m}", "did you mean `keep_alive`?"),
        (
            "models: {m: {source: a/b, defaults: {temprature: 1}}}",
            "`models.m.defaults.temprature`; did you mean",
        ),
        (
            "models: {m: {source: a/b, kv_cache: {token: 1}}}",
            "`models.m.kv_cache.token`; did you mean `tokens`?",
        ),
        ("zebra: 1", "the sections are memory, defaults, models, server"),
    ],
)
def test_unknown_keys_are_refused_at_every_level(text: str, expected: str) -> None:
    assert expected in problem(text)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("quantization: q4", "expected one of auto, none, int8, int4, gguf, bnb-nf4, bnb-int8, gptq, awq"),
        ("kernels: cuda", "expected one of auto, native, torch"),
        ("quantization: bnb-nf5", "did you mean `bnb-nf4`?"),
        ("task: rerank", "expected one of auto, generate, embed, got 'rerank'"),
        ("device: tpu", "expected auto, cpu, cuda or cuda:N, got 'tpu'"),
        ("dtype: fp16", "expected one of auto, float32"),
        ("speculation: eagle", "expected one of none, prompt-lookup, got 'eagle'"),
        ("max_draft_tokens: 0", "expected a whole number from 1 to 64"),
        ("preload: maybe", "expected true or false, got 'maybe'"),
        ("max_model_len: 0", "expected a whole number from 1"),
        ("max_model_len: 4k", "expected a whole number from 1"),
        ("kv_cache: 0", "expected a size above 0"),
        ("kv_cache: {tokens: 5, bytes: 1GiB}", "give `bytes` or `tokens`, not both"),
        ("keep_alive: soon", "expected a duration such as"),
        ("sha256: abc", "expected 64 lower-case hex digits"),
        ("revision: 1234567", "expected text, got 1234567: put it in quotes"),
        ("revision: ../x", "expected a commit, tag or branch"),
        ("aliases: gpt-4", "expected a list such as [a, b]"),
        ("aliases: [a, a]", "'a' is listed twice"),
        ("aliases: ['../x']", "expected a name of letters"),
        ("defaults: {temperature: .nan}", "expected a number from 0 to 2"),
        ("defaults: {top_p: 0}", "expected a number above 0 and at most 1"),
        ("defaults: {repetition_penalty: 1e-40}", "expected a number from 0.01 to 2"),
        ("defaults: 5", "expected `key: value` pairs, got 5"),
        ("source: ''", "expected a non-empty text"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_expected(line: str, expected: str) -> None:
    if line.startswith("source"):
        assert expected in problem(f"models:\n  m:\n    {line}\n")
        return
    message = problem_in_model(line)
    assert expected in message
    assert message.startswith("models.yaml, line 4: models.m.")


def test_all_problems_are_told_at_once() -> None:
    message = problem("memory: {gpu: lots}\nmodels:\n  a: {device: tpu}\n  b: {source: x/y, dtyp: auto}\n")
    assert [line.partition(":")[0] for line in message.splitlines()] == [
        "models.yaml, line 1",
        "models.yaml, line 3",
        "models.yaml, line 3",
        "models.yaml, line 4",
    ]


def test_a_model_needs_a_source() -> None:
    assert "models.m: needs a `source`" in problem("models: {m: {}}")
    assert "models.m: needs a `source`" in problem("models: {m: }")


@pytest.mark.parametrize("key", ["source", "trust_remote_code", "allow_pickle", "aliases", "preload"])
def test_what_belongs_to_one_model_cannot_be_a_default_for_all(key: str) -> None:
    assert f"`{key}` cannot be a default for all models" in problem(f"defaults: {{{key}: true}}")


@pytest.mark.parametrize(
    "name", ["'../etc'", "''", "'a b'", '"a\\nb"', "'/abs'", "ünï", '"nul\\0"', "'" + "x" * 129 + "'"]
)
def test_a_model_name_that_could_be_taken_for_something_else_is_refused(name: str) -> None:
    assert "models" in problem(f"models: {{{name}: {{source: a/b}}}}")


def test_a_name_or_alias_belongs_to_one_model() -> None:
    text = "models:\n  a: {source: x/a, aliases: [c]}\n  b: {source: x/b, aliases: [a]}\n"
    assert "line 3: models.b.aliases: 'a' is already taken by models.a" in problem(text)
    assert "'c' is already taken by models.a" in problem(text.replace("[a]", "[c]"))
    assert "is its own name" in problem("models: {a: {source: x/a, aliases: [a]}}")


def test_a_duplicate_key_is_refused_with_both_lines() -> None:
    message = problem("models:\n  a: {source: x/a}\n  a: {source: x/b}\n")
    assert message == "models.yaml, line 3: key 'a' is there twice (models.yaml, line 2)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("models: [", "not valid YAML"),
        ("models: {a: !!python/object/apply:os.system [id]}", "YAML tag"),
        ("models: {a: !!binary aGk=}", "YAML tag"),
        ("models: {a: &x {source: a/b}, b: *x}", "a YAML alias for a whole section is not supported"),
        ("models: &x {a: *x}", "a YAML alias for a whole section is not supported"),
        ("models:\n  a: &x {source: a/b}\n  b: {<<: *x}", "merge keys"),
        ("? [a]\n: b", "a key must be text"),
        ("--- {}\n--- {}", "not valid YAML"),
        ("a: \x00", "not a YAML text"),
        ("[1]", "expected `key: value` pairs"),
        ("just text", "expected `key: value` pairs"),
        ("models: " + "[" * 30 + "]" * 30, "nested too deeply"),
        ("models: " + "[" * 100_000, "nested too deeply"),
        ("#" * (1024 * 1024 + 1), "larger than 1 MiB"),
        ("memory: {gpu: " + "9" * 5000 + "}", ""),
    ],
)
def test_hostile_or_broken_yaml_is_a_config_error(text: str, expected: str) -> None:
    assert expected in problem(text)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["memory", "defaults", "models", "server"]), VALUES))
def test_whatever_the_file_says_it_is_read_or_refused(document: dict[str, object]) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(parse(yaml.safe_dump(document)), Catalog)


@given(st.text(alphabet="models: {}[]&*!<\n-#'\"$env|>%@`\t", max_size=60))
def test_whatever_the_text_is_it_is_read_or_refused(document: str) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(parse(document), Catalog)


# ---------------------------------------------------------------- ${env:NAME}


def test_environment_references_are_expanded_in_any_value() -> None:
    text = "models: {m: {source: '${env:ORG}/x', max_model_len: '${env:LEN}', preload: '${env:PRE}'}}"
    spec = parse(text, ORG="acme", LEN="512", PRE="true").models["m"]
    assert (spec.source, spec.max_model_len, spec.preload) == ("acme/x", 512, True)


def test_an_expanded_value_is_never_read_as_yaml() -> None:
    spec = parse("models: {m: {source: '${env:S}'}}", S="a/b, trust_remote_code: true").models["m"]
    assert not spec.trust_remote_code


def test_a_missing_variable_is_named_with_its_line() -> None:
    message = problem("models:\n  m:\n    source: ${env:NOPE}\n")
    assert message == "models.yaml, line 3: the environment variable NOPE is not set (from ${env:NOPE})"
    assert "is not the name of an environment variable" in problem("memory: {gpu: '${env:a-b}'}")


# ---------------------------------------------------------------- files


def test_relative_paths_count_from_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(
        "models:\n  f: {source: ./folder}\n  g: {source: sub/x.gguf}\n  h: {source: org/name}\n"
        "  w: {source: pypi:p==1/m/x.gguf}\n  s: {source: 'scripted:?delay=1'}\n"
    )
    sources = {name: spec.source for name, spec in load_catalog(tmp_path / "models.yaml", {}).models.items()}
    assert sources == {
        "f": str(tmp_path / "folder"),
        "g": str(tmp_path / "sub" / "x.gguf"),
        "h": "org/name",
        "w": "pypi:p==1/m/x.gguf",
        "s": "scripted:?delay=1",
    }


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_bytes(b"\xef\xbb\xbfmodels: {m: {source: a/b}}\n")
    assert list(load_catalog(path, {}).models) == ["m"]


def test_a_file_that_cannot_be_read_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_catalog(tmp_path / "none.yaml", {})
    with pytest.raises(ConfigError, match="cannot read"):
        load_catalog(tmp_path, {})
    (tmp_path / "latin.yaml").write_bytes(b"models: {m: {source: \xff}}")
    with pytest.raises(ConfigError, match="not a UTF-8 text"):
        load_catalog(tmp_path / "latin.yaml", {})


# ---------------------------------------------------------------- finding models


def test_models_are_found_by_name_and_alias() -> None:
    catalog = parse(FULL)
    assert catalog.resolve("small").name == "small"
    assert catalog.resolve("gpt-3.5-turbo").name == "small"


def test_an_unknown_model_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownModel, match=r"The model 'larg' does not exist; did you mean 'large'\?"):
        parse(FULL).resolve("larg")


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "a\x00\r\nb", "x" * 100_000, "\ud800"])
def test_a_hostile_model_name_is_unknown_and_shown_harmlessly(name: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        parse(FULL).resolve(name)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 200


def test_a_model_can_be_added_or_replaced_but_not_take_anothers_name() -> None:
    catalog = parse(FULL)
    added = catalog.with_model(ModelSpec(name="new", source="a/b"))
    assert set(added.models) == {"small", "large", "new"}
    assert set(catalog.models) == {"small", "large"}
    assert catalog.with_model(ModelSpec(name="large", source="a/b")).models["large"].source == "a/b"
    with pytest.raises(ConfigError, match=r"'gpt-3\.5-turbo' belongs to another model"):
        catalog.with_model(ModelSpec(name="gpt-3.5-turbo", source="a/b"))


@pytest.mark.parametrize(
    ("source", "name", "aliases"),
    [
        (
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            "smollm2-135m-instruct",
            ("HuggingFaceTB/SmolLM2-135M-Instruct",),
        ),
        ("/models/My Model/", "my-model", ()),
        ("./dir/Model.Q4_1.gguf", "model.q4_1", ()),
        ("pypi:p==1.0/member/Small.gguf", "small", ()),
        ("scripted", "scripted", ()),
        ("scripted:?delay=1", "scripted", ()),
        ("/", "model", ()),
    ],
)
def test_a_temporary_model_is_named_after_its_source(
    source: str, name: str, aliases: tuple[str, ...]
) -> None:
    spec = temporary_model(source, dtype="float32")
    assert (spec.name, spec.source, spec.aliases) == (name, source, aliases)
    assert spec.preload
    assert spec.dtype == "float32"
