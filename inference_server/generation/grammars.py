"""Refuses wrong grammars before a worker sees them, in threads. Owner: the event loop.

What only a model's tokenizer can tell, such as a grammar that no token can begin, the worker finds out.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from inference_server.structured.grammars import check_grammar
from inference_server.structured.lanes import GrammarLanes
from inference_server.types import GrammarSpec

MAX_KNOWN = 256  # grammars that were right; a bound on their texts is in `structured`
KEPT_CHARS = 4096  # longer ones are not remembered


class GrammarChecker:
    """Remembers what was right, so that a client's second request costs nothing."""

    def __init__(self) -> None:
        self._lanes = GrammarLanes()
        self._known: OrderedDict[GrammarSpec, None] = OrderedDict()

    async def check(self, spec: GrammarSpec, tenant: str) -> None:
        """Raises InvalidRequest, with the reason, if the grammar cannot be used."""
        if spec in self._known:
            self._known.move_to_end(spec)
            return
        await asyncio.wrap_future(self._lanes.submit(spec, tenant, check_grammar))
        if len(spec.text) <= KEPT_CHARS:
            self._known[spec] = None
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
