"""Tokenizers and chat templates of prepared folders, read once each and kept: a bounded cache.

Owner: the event loop. Reading and long encodings happen in threads of its own.
"""

from __future__ import annotations

import asyncio
import functools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

from inference_server.generation.prompt import PromptTemplate
from inference_server.generation.requests import ChatPrompt, Prompt, TextPrompt, TokenPrompt

MAX_TEMPLATES = 32  # a tokenizer takes up to some tens of MB
INLINE_CHARS = 2048  # shorter prompts are encoded on the loop: a thread would cost more than it saves
MESSAGE_CHARS = 32  # what a message costs in the template besides what is in it
LONG_CHARS = 131_072  # so long prompts take some 0.1 s: they have a thread of their own, and wait in it
NUM_THREADS = 2  # for the others


class Templates:
    """`PromptTemplate`s by folder. The least recently used one leaves when there are too many."""

    def __init__(
        self,
        read: Callable[[Path], PromptTemplate] = PromptTemplate,
        *,
        max_entries: int = MAX_TEMPLATES,
        inline_chars: int = INLINE_CHARS,
    ) -> None:
        self._read = read
        self._max_entries = max_entries
        self._inline_chars = inline_chars
        self._threads = ThreadPoolExecutor(max_workers=NUM_THREADS, thread_name_prefix="encode")
        self._long = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode-long")
        self._known: OrderedDict[str, PromptTemplate] = OrderedDict()
        self._reading: dict[str, asyncio.Task[PromptTemplate]] = {}

    async def get(self, folder: str) -> PromptTemplate:
        """The template of a folder.

        Raises:
            ModelLoadFailed: its files cannot be read.
        """
        template = self._known.get(folder)
        if template is not None:
            self._known.move_to_end(folder)
            return template
        task = self._reading.get(folder)
        if task is None:
            task = self._reading[folder] = asyncio.create_task(self._fill(folder))
        return await asyncio.shield(task)  # one reads for all; who leaves does not stop it

    async def encode(self, template: PromptTemplate, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a prompt; long ones are encoded in a thread.

        Raises:
            InvalidRequest, UnsupportedParameter: as `PromptTemplate`.
        """
        if isinstance(prompt, TokenPrompt):
            return prompt.token_ids
        if _is_short(prompt, self._inline_chars):
            return _encoded(template, prompt)
        loop = asyncio.get_running_loop()
        threads = self._threads if _is_short(prompt, LONG_CHARS) else self._long
        return await loop.run_in_executor(threads, _encoded, template, prompt)

    async def encode_texts(
        self, template: PromptTemplate, texts: Sequence[str], max_tokens: int | None = None
    ) -> list[tuple[int, ...]]:
        """Token ids of each text, special tokens included, cut to `max_tokens` each."""
        encode = functools.partial(_encoded_texts, template, texts, max_tokens)
        num_chars = sum(map(len, texts))
        if num_chars <= self._inline_chars:
            return encode()
        threads = self._threads if num_chars <= LONG_CHARS else self._long
        return await asyncio.get_running_loop().run_in_executor(threads, encode)

    async def decode(self, template: PromptTemplate, token_ids: tuple[int, ...]) -> str:
        """The text of token ids, special ones included; long lists are decoded in a thread."""
        if len(token_ids) <= self._inline_chars:
            return template.decode(token_ids, skip_special_tokens=False)
        decode = functools.partial(template.decode, token_ids, skip_special_tokens=False)
        return await asyncio.get_running_loop().run_in_executor(self._threads, decode)

    async def spellings(self, template: PromptTemplate, token_ids: tuple[int, ...]) -> tuple[str, ...]:
        """Each token as the vocabulary writes it; those of long lists are found in a thread."""
        if len(token_ids) <= self._inline_chars:
            return _spellings(template, token_ids)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _spellings, template, token_ids)

    async def _fill(self, folder: str) -> PromptTemplate:
        try:
            loop = asyncio.get_running_loop()
            template = await loop.run_in_executor(self._threads, self._read, Path(folder))
        finally:
            del self._reading[folder]
        self._known[folder] = template
        while len(self._known) > self._max_entries:
            self._known.popitem(last=False)
        return template


def _encoded(template: PromptTemplate, prompt: ChatPrompt | TextPrompt) -> tuple[int, ...]:
    if isinstance(prompt, TextPrompt):
        return tuple(template.encode_text(prompt.text, add_special_tokens=prompt.add_special_tokens))
    return tuple(template.encode_chat(prompt))


def _encoded_texts(
    template: PromptTemplate, texts: Sequence[str], max_tokens: int | None
) -> list[tuple[int, ...]]:
    if max_tokens is None:
        return [tuple(template.encode_text(text)) for text in texts]
    return [tuple(template.encode_cut(text, max_tokens)) for text in texts]


def _spellings(template: PromptTemplate, token_ids: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(map(template.texts.spelling, token_ids))


def _is_short(prompt: ChatPrompt | TextPrompt, max_chars: int) -> bool:
    """Whether it can be written and encoded in no time: a template may write whatever it is given."""
    if isinstance(prompt, TextPrompt):
        return len(prompt.text) <= max_chars
    num_left = max_chars - MESSAGE_CHARS * len(prompt.messages)
    return _left(num_left, (prompt.messages, prompt.tools, prompt.variables)) >= 0


def _left(num_chars: int, value: Any) -> int:
    """What a value leaves of so many characters. It is not read further once there are none."""
    num_chars -= 1
    if isinstance(value, str):
        return num_chars - len(value)
    if isinstance(value, int):
        return num_chars - value.bit_length() // 3  # its digits
    if isinstance(value, Mapping):
        value = chain.from_iterable(value.items())
    elif not isinstance(value, (list, tuple)):
        return num_chars
    for entry in value:
        if num_chars < 0:
            break
        num_chars = _left(num_chars, entry)
    return num_chars
