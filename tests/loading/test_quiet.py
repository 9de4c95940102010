"""What libraries say at every product does not reach the log; what else they say does."""

from __future__ import annotations

import logging

import pytest

from inference_server.loading.quiet import quiet_libraries


def test_only_the_remark_per_product_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    quiet_libraries()
    quiet_libraries()
    assert len([one for one in logger.filters if getattr(one, "__module__", "").endswith("quiet")]) == 1
    with caplog.at_level(logging.WARNING):
        logger.warning("MatMul8bitLt: inputs will be cast from %s to float16 during quantization", "x")
        logger.warning("something is wrong")
    assert [record.getMessage() for record in caplog.records] == ["something is wrong"]
