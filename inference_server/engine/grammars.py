"""Compiles grammars for one model's tokenizer, beside the engine's loop, and follows each answer through one.

Owner: the engine. Threads of its own compile; the library releases the interpreter's lock meanwhile.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from pathlib import Path

import llguidance

from inference_server.scheduling.constraint import Constraint
from inference_server.structured.grammars import library_grammar, limits, refusal
from inference_server.structured.lanes import GrammarLanes
from inference_server.types import GrammarSpec

MAX_COMPILED = 64  # grammars that are kept; each takes up to some megabytes


class GrammarConstraint:
    """A `Constraint`: one answer's way through a grammar."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        """Owns the matcher, which has consumed nothing yet."""
        self._matcher = matcher
        self._num_consumed = 0

    @property
    def error(self) -> str | None:
        """See `Constraint.error`."""
        if not self._matcher.is_error():
            return None
        return "the grammar is too complex: no next token can be found within its limits of work"

    def write_mask(self, output_token_ids: Seq[int], address: int, num_bytes: int) -> None:
        """See `Constraint.write_mask`. Where the grammar may end, tokens that end an answer are allowed."""
        new = list(output_token_ids[self._num_consumed :])
        self._num_consumed += len(new)
        if new:
            self._matcher.consume_tokens(new)
        if not self._matcher.is_error():
            self._matcher.unsafe_compute_mask_ptr(address, num_bytes)


class Grammars:
    """Compiled grammars of one tokenizer; the least recently used leave when there are too many."""

    def __init__(self, folder: Path, *, vocab_size: int, eos_token_ids: Seq[int]) -> None:
        """`folder` holds tokenizer.json; it is read with the first grammar. `vocab_size`: logits' width."""
        self._folder = folder
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._lanes = GrammarLanes()
        self._lock = threading.Lock()  # for what both lanes use: the two below
        self._compiled: OrderedDict[GrammarSpec, llguidance.LLMatcher] = OrderedDict()

    def constrain(self, spec: GrammarSpec, tenant: str = "") -> Future[Constraint]:
        """What follows one answer through this grammar. Tenants take turns.

        Raises (from the future):
            InvalidRequest: the grammar is wrong, or beyond the library's limits.
        """
        return self._lanes.submit(spec, tenant, self._constrain)

    def _constrain(self, spec: GrammarSpec) -> Constraint:
        with self._lock:
            matcher = self._compiled.get(spec)
        if matcher is None:
            matcher = self._compile(spec)
        self._keep(spec, matcher)
        return GrammarConstraint(matcher.deep_copy())

    def _keep(self, spec: GrammarSpec, matcher: llguidance.LLMatcher) -> None:
        with self._lock:
            self._compiled[spec] = matcher
            self._compiled.move_to_end(spec)
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)

    def _compile(self, spec: GrammarSpec) -> llguidance.LLMatcher:
        with self._lock:
            tokenizer = self._tokenizer
        matcher = llguidance.LLMatcher(tokenizer, library_grammar(spec), log_level=0, limits=limits())
        if not matcher.is_error():
            matcher.compute_bitmask()  # what a first mask takes belongs here, and so does its failure
        if matcher.is_error():
            raise refusal(spec, matcher.get_error())
        return matcher

    @functools.cached_property
    def _tokenizer(self) -> llguidance.LLTokenizer:
        text = (self._folder / "tokenizer.json").read_text(encoding="utf-8")
        return llguidance.LLTokenizer(text, n_vocab=self._vocab_size, eos_token=self._eos_token_ids)
