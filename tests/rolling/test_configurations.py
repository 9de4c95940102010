"""The shipped configurations as they are, with their own names of replicas, as the proxies read them."""

from __future__ import annotations

import subprocess

import pytest

from tests.rolling.proxies import ENVOY_CONFIG, HAPROXY_CONFIG, PICKER_CONFIG, tools


@pytest.mark.parametrize(
    "command",
    [
        ("envoy", "--log-level", "error", "--mode", "validate", "-c", str(ENVOY_CONFIG)),
        ("envoy", "--log-level", "error", "--mode", "validate", "-c", str(PICKER_CONFIG)),
        ("haproxy", "-q", "-c", "-f", str(HAPROXY_CONFIG)),
    ],
    ids=["envoy", "envoy with a picker", "haproxy"],
)
def test_the_proxy_accepts_it(command: tuple[str, ...]) -> None:
    program, *flags = command
    done = subprocess.run([str(tools() / program), *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
