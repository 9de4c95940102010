"""Faults on demand for scripted models: which one a file or a prompt asks for, and how it is brought about.

For tests of what surrounds a model: only a model whose options say so obeys. Knows no engine.
"""

from __future__ import annotations

import enum
import re
import signal
import time
from pathlib import Path

from inference_server.scheduling.batch import Batch, ScheduledSequence

HANG_S = 3600.0
DECODE_POSITION = 2  # output tokens before a fault "in decode", so that a stream has begun


class Fault(enum.StrEnum):
    """Ways to go wrong."""

    OOM = "oom"  # memory cannot be had
    ERROR = "error"  # an exception in the forward pass
    SEGFAULT = "segfault"
    KILL = "kill"  # SIGKILL, as by the kernel's out-of-memory killer
    HANG = "hang"  # no end, no error


_REQUEST = re.compile(rf"fault:(?P<kind>{'|'.join(Fault)}):(?P<stage>prefill|decode)".encode())


class ScriptedError(RuntimeError):
    """An error that was asked for."""


def commit(fault: Fault) -> None:
    """Go wrong in this way; returns only from a hang that nobody has ended.

    Raises:
        MemoryError, ScriptedError: that is the fault.
    """
    match fault:
        case Fault.OOM:
            raise MemoryError("memory was scripted to run out")
        case Fault.ERROR:
            raise ScriptedError("this was scripted to fail")
        case Fault.SEGFAULT:
            signal.raise_signal(signal.SIGSEGV)
        case Fault.KILL:
            signal.raise_signal(signal.SIGKILL)
        case Fault.HANG:
            time.sleep(HANG_S)


def fault_in_file(path: Path) -> Fault | None:
    """What the file says, None if there is no such file or nothing in it.

    Raises:
        ValueError: it names no fault.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    return Fault(text) if text else None


def fault_in_prompts(batch: Batch) -> Fault | None:
    """The first fault that a prompt of the batch asks for now, as in `fault:oom:decode`."""
    return next((fault for item in batch.scheduled if (fault := _fault_of(item)) is not None), None)


def _fault_of(item: ScheduledSequence) -> Fault | None:
    num_prompt_tokens = item.sequence.num_prompt_tokens
    prompt = bytes(token for token in item.sequence.token_ids[:num_prompt_tokens] if token < 256)
    asked = _REQUEST.search(prompt)
    if asked is None:
        return None
    is_due = (
        item.start < num_prompt_tokens
        if asked["stage"] == b"prefill"
        else item.sample_position >= num_prompt_tokens + DECODE_POSITION
    )
    return Fault(asked["kind"].decode()) if is_due else None
