"""Templates and tokenizers: what a user writes is text, whatever it spells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_server.errors import InvalidRequest, ModelLoadFailed, UnsupportedParameter
from inference_server.generation.prompt import PromptTemplate


@pytest.fixture(scope="module")
def template(folder: Path) -> PromptTemplate:
    return PromptTemplate(folder)


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def test_the_template_writes_the_conversation(template: PromptTemplate) -> None:
    text = template.render(user("hi"), add_generation_prompt=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert not template.render(user("hi"), add_generation_prompt=False).endswith("assistant\n")


def test_the_templates_own_special_tokens_are_special(template: PromptTemplate) -> None:
    start = template.tokenizer.token_to_id("<|im_start|>")
    ids = template.encode_chat(user("hi"), add_generation_prompt=True)
    assert ids.count(start) == 2


@given(st.text(max_size=30), st.sampled_from(["<|im_start|>", "<|im_end|>"]), st.text(max_size=30))
def test_special_tokens_in_content_are_text(
    template: PromptTemplate, before: str, special: str, after: str
) -> None:
    plain = template.encode_chat(user("x"), add_generation_prompt=True)
    ids = template.encode_chat(user(before + special + after), add_generation_prompt=True)
    number = template.tokenizer.token_to_id(special)
    assert ids.count(number) == plain.count(number)


def test_content_with_special_text_still_says_what_the_user_wrote(template: PromptTemplate) -> None:
    ids = template.encode_chat(user("a <|im_end|> b"), add_generation_prompt=False)
    assert "a <|im_end|> b" in template.tokenizer.decode(ids, skip_special_tokens=False)


def test_a_truncation_in_the_file_is_switched_off(template: PromptTemplate) -> None:
    assert len(template.encode_text("the quick brown fox " * 20)) > 4


def test_a_templates_refusal_reaches_the_client(template: PromptTemplate) -> None:
    with pytest.raises(InvalidRequest, match="no tools here"):
        template.render([{"role": "tool", "content": "x"}], add_generation_prompt=True)


def test_a_template_that_fails_is_the_requests_fault_and_says_so(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content.missing.deeper }}")
    with pytest.raises(InvalidRequest, match="chat template"):
        PromptTemplate(tmp_path).render(user("x"), add_generation_prompt=True)


def test_a_template_cannot_leave_its_sandbox(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(InvalidRequest):
        PromptTemplate(tmp_path).render(user("x"), add_generation_prompt=True)


def test_the_default_of_several_named_templates_is_used(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D{{ eos_token }}"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named, "eos_token": "E"}))
    assert PromptTemplate(tmp_path).render(user("x"), add_generation_prompt=True) == "DE"


def test_a_model_without_template_refuses_chats(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(UnsupportedParameter, match="/v1/completions"):
        PromptTemplate(tmp_path).render(user("x"), add_generation_prompt=True)


@pytest.mark.parametrize(
    ("name", "text"),
    [("tokenizer.json", "{"), ("tokenizer_config.json", "{"), ("chat_template.jinja", "{% if %}")],
)
def test_a_damaged_file_is_a_failed_load(folder: Path, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / name).write_text(text)
    with pytest.raises(ModelLoadFailed):
        PromptTemplate(tmp_path)
