"""What a new configuration means for the models there are; `Reloader` reads one and has it applied."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from inference_server.config.catalog import Catalog, ModelSpec, SamplingDefaults
from inference_server.errors import ConfigError

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """Models by name. `changed` have a new entry; those in memory leave it only if `affects_loading`."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


def compare(old: Catalog, new: Catalog) -> ReloadReport:
    """What is different.

    Raises:
        ConfigError: the memory budget is; it cannot change while models hold parts of it.
    """
    if old.memory != new.memory:
        raise ConfigError(
            "`memory` has changed, and the budget cannot change while the server runs; restart the server, "
            "or put the old values back and reload again",
            param="memory",
        )
    both = [name for name in new.models if name in old.models]
    return ReloadReport(
        added=tuple(name for name in new.models if name not in old.models),
        removed=tuple(name for name in old.models if name not in new.models),
        changed=tuple(name for name in both if old.models[name] != new.models[name]),
    )


def affects_loading(old: ModelSpec, new: ModelSpec) -> bool:
    """Whether a model in memory under the old entry is not what the new one describes."""
    return _loaded_part(old) != _loaded_part(new)


def _loaded_part(spec: ModelSpec) -> ModelSpec:
    return msgspec.structs.replace(
        spec,
        aliases=(),
        preload=False,
        pinned=False,
        defaults=SamplingDefaults(),
        keep_alive_s=None,
        tool_parser="auto",
        reasoning_parser="auto",
    )


class Reloader(Generic[T]):
    """Re-reads the configuration and applies it, one reload at a time.

    `read` gives what the files, environment and flags say now, in a thread; `apply` takes all of it or, with
    a ConfigError, nothing.
    """

    def __init__(self, read: Callable[[], T], apply: Callable[[T], ReloadReport]) -> None:
        self._read = read
        self._apply = apply
        self._turn = asyncio.Lock()

    async def reload(self) -> ReloadReport:
        """Apply what the configuration says now; if it is wrong, everything stays as it was.

        Raises:
            ConfigError: one line per problem.
        """
        async with self._turn:
            report = self._apply(await asyncio.to_thread(self._read))
        logger.info(
            "configuration reloaded: added %s; removed %s; changed %s",
            *(", ".join(names) or "none" for names in (report.added, report.removed, report.changed)),
        )
        return report
