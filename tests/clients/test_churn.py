"""Readers concurrent with writers: each answer is consistent, whatever is made and deleted."""

import pytest

from tests.support.churn import Churn
from tests.support.daemon import Daemon


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_each_answer_is_of_one_state(daemon: Daemon) -> None:
    churn = Churn(daemon)
    churn.run(15)
    assert not churn.wrong, churn.wrong
    for told in ("status", "volumes", "snapshots", "groups/snapshots", "_volumes", "_groups", "_clones"):
        assert churn.answers[told], churn.answers
    warnings = [event["text"] for event in daemon.api.get("status")["events"] if event["level"] == "warning"]
    assert warnings == []
    assert "Traceback" not in daemon.said()
