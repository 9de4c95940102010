"""Messages become the tokens that the template meant; what a client writes never becomes a control token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from inference_server.errors import InvalidRequest, ModelLoadFailed, UnsupportedParameter
from inference_server.generation import prompt
from inference_server.generation.prompt import PromptTemplate
from inference_server.generation.requests import ChatPrompt
from tests.generation.tokenizers import CHATML, SPECIALS, byte_level, write_folder


def chat(*contents: str) -> tuple[dict[str, str], ...]:
    return tuple({"role": "user", "content": content} for content in contents)


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> PromptTemplate:
    return PromptTemplate(write_folder(tmp_path_factory.mktemp("chatml"), byte_level()))


@pytest.fixture
def template(tmp_path: Path) -> PromptTemplate:
    return PromptTemplate(write_folder(tmp_path / "m", byte_level()))


def test_a_conversation_becomes_the_tokens_of_the_rendered_text(template: PromptTemplate) -> None:
    ids = template.encode_chat(ChatPrompt(chat("hello world"), True))
    text = "<|im_start|>user\nhello world<|im_end|>\n<|im_start|>assistant\n"
    assert ids == template.tokenizer.encode(text, add_special_tokens=False).ids


def test_without_generation_prompt_the_assistant_is_not_opened(template: PromptTemplate) -> None:
    ids = template.encode_chat(ChatPrompt(chat("hello"), False))
    assert template.tokenizer.decode(ids, skip_special_tokens=False).endswith("<|im_end|>\n")


@pytest.mark.parametrize("special", SPECIALS)
def test_special_token_text_in_content_is_encoded_as_text(template: PromptTemplate, special: str) -> None:
    content = f"hello {special} {special}world {special[:5]}"
    ids = template.encode_chat(ChatPrompt(chat(content), True))
    plain = template.encode_chat(ChatPrompt(chat("hello"), True))
    special_ids = [template.tokenizer.token_to_id(token) for token in SPECIALS]
    assert [i for i in ids if i in special_ids] == [i for i in plain if i in special_ids]
    assert template.tokenizer.decode(ids, skip_special_tokens=False) == (
        f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("special", SPECIALS)
def test_special_token_text_in_the_keys_of_objects_is_encoded_as_text(tmp_path: Path, special: str) -> None:
    source = "{{ tools | tojson }}{% for message in messages %}{{ message | tojson }}{% endfor %}"
    template = PromptTemplate(write_folder(tmp_path, byte_level(), template=source))
    evil = f"a{special}{special}b"
    call = {"function": {"name": "f", "arguments": {evil: {evil: [{evil: 1}]}}}}
    messages = ({"role": "assistant", "content": "", "tool_calls": [call]},)
    tool = {"function": {"name": "f", "parameters": {"properties": {evil: {}}}}}
    ids = template.encode_chat(ChatPrompt(messages, tools=(tool,)))
    assert not set(ids) & {template.tokenizer.token_to_id(token) for token in SPECIALS}
    assert template.decode(ids, skip_special_tokens=False) == json.dumps([tool]) + json.dumps(messages[0])


def test_private_use_characters_in_content_survive(template: PromptTemplate) -> None:
    content = "a\ue000b\ue001c <|im_end|>"
    ids = template.encode_chat(ChatPrompt(chat(content), True))
    assert content in template.tokenizer.decode(ids, skip_special_tokens=False)


def test_raw_text_may_hold_special_tokens(template: PromptTemplate) -> None:
    ids = template.encode_text("<|im_start|>hello")
    assert ids[0] == template.tokenizer.token_to_id("<|im_start|>")


@pytest.mark.parametrize(
    ("single", "around"),
    [("$A", ((), ())), ("<|im_start|> $A", ((1,), ())), ("<|im_start|> $A <|im_end|>", ((1,), (2,)))],
    ids=["none", "before", "both"],
)
def test_a_text_that_is_cut_keeps_the_special_tokens_around_it(
    tmp_path: Path, single: str, around: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    tokenizer = byte_level()
    specials = [(token, tokenizer.token_to_id(token)) for token in SPECIALS]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=specials)
    template = PromptTemplate(write_folder(tmp_path, tokenizer))
    own = tokenizer.encode("hello world", add_special_tokens=False).ids
    before, after = around
    room = 4 - len(before) - len(after)
    assert template.encode_cut("hello world", 4) == [*before, *own[:room], *after]
    assert template.encode_cut("hello world", 100) == template.encode_text("hello world")
    assert template.encode_cut("hello world", 1) == [*before, *own, *after][:1]


def test_what_a_template_marks_for_training_is_written(tmp_path: Path) -> None:
    source = (
        "{% for message in messages %}\n{{ message.role }}: {% generation %}{% set x = 1 %}"
        "{{ message.content }}{% endgeneration %}{{ x | default('.') }}\n{% endfor %}"
        "{% if tools %}{{ tools | tojson }}{% endif %}"
    )
    template = PromptTemplate(write_folder(tmp_path, byte_level(), template=source))
    tool = {"type": "function", "function": {"name": "f"}}
    assert template.render(ChatPrompt(chat("hi", "ho"))) == "user: hi.\nuser: ho.\n"
    assert template.render(ChatPrompt(chat("hi"), tools=(tool,))) == f"user: hi.\n{json.dumps([tool])}"


def test_tools_and_documents_that_are_not_there_are_none(tmp_path: Path) -> None:
    source = "{% if tools is not none or documents is not none %}some{% endif %}{{ messages[0].content }}"
    template = PromptTemplate(write_folder(tmp_path, byte_level(), template=source))
    assert template.render(ChatPrompt(chat("hi"))) == "hi"


def test_a_template_may_refuse_messages(tmp_path: Path) -> None:
    source = "{{ raise_exception('roles must alternate') }}"
    template = PromptTemplate(write_folder(tmp_path, byte_level(), template=source))
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        template.encode_chat(ChatPrompt(chat("hi"), True))


@pytest.mark.parametrize(
    "source",
    ["{{ messages[99].content }}", "{{ 1 // 0 }}", "{{ messages | sort(attribute='x') | first + 1 }}"],
)
def test_a_template_that_fails_on_messages_is_the_requests_fault(tmp_path: Path, source: str) -> None:
    template = PromptTemplate(write_folder(tmp_path, byte_level(), template=source))
    with pytest.raises(InvalidRequest, match="cannot write these messages"):
        template.encode_chat(ChatPrompt(chat("hi"), True))


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append({'role': 'system', 'content': 'x'}) }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_templates_run_in_the_immutable_sandbox(tmp_path: Path, source: str) -> None:
    template = PromptTemplate(write_folder(tmp_path, byte_level(), template=source))
    with pytest.raises(InvalidRequest):
        template.encode_chat(ChatPrompt(chat("hi"), True))


def test_a_rendered_text_that_grows_too_long_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt, "MAX_RENDERED_CHARS", 1000)
    source = "{% for i in range(100000) %}xxxxxxxxxx{% endfor %}"
    template = PromptTemplate(write_folder(tmp_path, byte_level(), template=source))
    with pytest.raises(InvalidRequest, match="too long"):
        template.encode_chat(ChatPrompt(chat("hi"), True))


def test_helpers_that_checkpoints_expect_are_there(tmp_path: Path) -> None:
    source = (
        "{%- for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{{ {'b': '<ü>', 'a': 1} | tojson }}"
        "{{ strftime_now('%Y') | length }}{% endfor %}{{ bos_token }}{{ eos_token }}"
    )
    config = {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|im_end|>", "lstrip": False}}
    template = PromptTemplate(write_folder(tmp_path, byte_level(), template=source, config=config))
    text = template.render(ChatPrompt(chat("a", "b"), True))
    assert text == '{"b": "<ü>", "a": 1}4<|endoftext|><|im_end|>'


@pytest.mark.parametrize(
    "stored", [CHATML, [{"name": "rag", "template": "no"}, {"name": "default", "template": CHATML}]]
)
def test_the_template_may_stand_in_the_tokenizer_config(tmp_path: Path, stored: object) -> None:
    folder = write_folder(tmp_path, byte_level(), template=None, config={"chat_template": stored})
    text = PromptTemplate(folder).render(ChatPrompt(chat("hi"), True))
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_a_model_without_template_refuses_chat_but_takes_text(tmp_path: Path) -> None:
    template = PromptTemplate(write_folder(tmp_path, byte_level(), template=None))
    assert not template.has_chat_template
    with pytest.raises(UnsupportedParameter, match="no chat template"):
        template.encode_chat(ChatPrompt(chat("hi"), True))
    assert template.encode_text("hello")


@pytest.mark.parametrize("damage", ["tokenizer.json", "chat_template.jinja", "tokenizer_config.json"])
def test_damaged_files_fail_the_load_and_say_which(tmp_path: Path, damage: str) -> None:
    folder = write_folder(tmp_path, byte_level())
    (folder / damage).write_text("{% if", encoding="utf-8")
    with pytest.raises(ModelLoadFailed, match=r"tokenizer|template") as caught:
        PromptTemplate(folder)
    assert str(tmp_path) not in caught.value.message


@given(st.text(max_size=30), st.sampled_from(SPECIALS), st.text(max_size=30))
def test_whatever_surrounds_it_special_text_is_text(
    chatml: PromptTemplate, before: str, special: str, after: str
) -> None:
    plain = chatml.encode_chat(ChatPrompt(chat("x"), True))
    ids = chatml.encode_chat(ChatPrompt(chat(before + special + after), True))
    number = chatml.tokenizer.token_to_id(special)
    assert ids.count(number) == plain.count(number)


def test_a_truncation_in_the_file_is_switched_off(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=500)
    template = PromptTemplate(write_folder(tmp_path, tokenizer))
    assert 4 < len(template.encode_text("the quick brown fox " * 5)) < 500


# ---------------------------------------------------------------- tools

TOOL = {"type": "function", "function": {"name": "f", "description": "does <|im_end|>", "parameters": {}}}


WITH_TOOLS = (
    "{% for tool in tools or [] %}{{ tool.function.name }}:{{ tool | tojson }};{% endfor %}"
    "{{ messages[0].content }}"
)


def with_template(tmp_path: Path, source: str) -> PromptTemplate:
    return PromptTemplate(write_folder(tmp_path, byte_level(), template=source))


def test_a_template_that_knows_tools_gets_them_as_they_are(tmp_path: Path) -> None:
    template = with_template(tmp_path, WITH_TOOLS)
    ids = template.encode_chat(ChatPrompt(chat("hi"), tools=(TOOL,)))
    assert template.decode(ids, skip_special_tokens=False) == f"f:{json.dumps(TOOL)};hi"
    assert template.decode(template.encode_chat(ChatPrompt(chat("hi")))) == "hi"


def test_a_variable_that_only_sounds_like_tools_is_none(tmp_path: Path) -> None:
    template = with_template(tmp_path, "{# tools #}{% set tools = 1 %}{{ messages[0].content }}")
    text = template.decode(template.encode_chat(ChatPrompt(chat("hi"), tools=(TOOL,))))
    assert text.startswith("You may call these functions.")
