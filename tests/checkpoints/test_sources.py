from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_server.checkpoints.sources import (
    FolderSource,
    GgufFileSource,
    HubSource,
    JoinedWheelsSource,
    ScriptedSource,
    Source,
    WheelFolderSource,
    WheelSource,
    parse_source,
)
from inference_server.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubSource("org/name")),
        ("gpt2", HubSource("gpt2")),
        ("./models/x", FolderSource(Path("models/x"))),
        ("/abs/x", FolderSource(Path("/abs/x"))),
        ("models/x.gguf", GgufFileSource(Path("models/x.gguf"))),
        ("/abs/X.GGUF", GgufFileSource(Path("/abs/X.GGUF"))),
        ("pypi:Llm_Smol==0.1.2/llm/x.Q4_1.gguf", WheelSource("llm-smol", "0.1.2", "llm/x.Q4_1.gguf")),
        ("pypi:a==1/pkg/all-MiniLM-L6-v2", WheelFolderSource("a", "1", "pkg/all-MiniLM-L6-v2")),
        (
            "pypi:a==1/a/m.gguf.part00 + pypi:B==2/b/m.gguf.part01",
            JoinedWheelsSource(
                (WheelSource("a", "1", "a/m.gguf.part00"), WheelSource("b", "2", "b/m.gguf.part01"))
            ),
        ),
        ("scripted", ScriptedSource()),
        ("scripted:?step_ms=2&reply=a%20b", ScriptedSource((("reply", "a b"), ("step_ms", "2")))),
    ],
)
def test_each_kind_of_source_is_recognised(text: str, expected: Source) -> None:
    assert parse_source(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        " org/name",
        "org/name/extra",
        "org/../name",
        "https://example.org/x",
        "file:///etc/passwd",
        "pypi:x/y.gguf",
        "pypi:x==1/../y.gguf",
        "pypi:x==1//y.gguf",
        "pypi:x==1/y.bin",
        "pypi:x==1/y.gguf.part00 + pypi:x==1/z.gguf.part01",
        "pypi:x==1/y.gguf + pypi:x==1/y.gguf",
        "pypi:x==1/y.gguf.part00 + x==1/y.gguf.part01",
        "pypi:x==1/../y",
        "pypi:x==1",
        "pypi:x==1/a\\..\\y.gguf",
        "scripted:?a",
        "scripted:?a=1&a=2",
        "scripted:?A=1",
        "org/na\nme",
        "-x/y",
    ],
)
def test_what_is_no_source_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_source(text)
    assert caught.value.param == "source"


def test_a_revision_belongs_to_a_hub_repository_only() -> None:
    assert parse_source("org/name", "refs/pr/1") == HubSource("org/name", "refs/pr/1")
    with pytest.raises(ConfigError, match="Hub"):
        parse_source("./folder", "main")


@pytest.mark.parametrize("revision", ["../x", "-x", "", "a b"])
def test_a_revision_is_a_plain_name(revision: str) -> None:
    with pytest.raises(ConfigError):
        parse_source("org/name", revision)


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parse_source(text)
    except ConfigError:
        pass


def test_a_wheel_source_reads_back_as_it_was_written() -> None:
    for text in ("pypi:a==1/b/m.gguf", "pypi:a==1/b", "pypi:a==1/m.gguf.0 + pypi:b==1/m.gguf.1"):
        assert str(parse_source(text)) == text
