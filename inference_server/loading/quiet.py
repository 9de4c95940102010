"""Keeps libraries from writing into the server's log what no operator can act on."""

from __future__ import annotations

import logging

_PER_CALL = "inputs will be cast"  # bitsandbytes says so at every product


def quiet_libraries() -> None:
    """No progress bars (our own progress goes to the server), no remark per product. Idempotent."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    if _says_something not in logger.filters:
        logger.addFilter(_says_something)


def _says_something(record: logging.LogRecord) -> bool:
    return _PER_CALL not in record.msg
