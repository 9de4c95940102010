"""Who is to blame for a request that did not go well: agreed with the statuses that clients see."""

from __future__ import annotations

import pytest

from inference_server.api.errors import STATUS
from inference_server.errors import HelixFlowError, ShuttingDown
from inference_server.telemetry.outcomes import Outcome, outcome_of


@pytest.mark.parametrize("kind", STATUS, ids=lambda kind: kind.__name__)
def test_what_answers_with_a_5xx_has_failed_unless_the_server_is_leaving(kind: type[HelixFlowError]) -> None:
    is_ours = STATUS[kind][0] >= 500 and kind is not ShuttingDown
    assert outcome_of(kind("no")) is (Outcome.FAILED if is_ours else Outcome.REFUSED)
