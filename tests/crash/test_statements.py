"""test_statements: verbs killed before, or failed at, their statements are done completely, or not at all.

How it works      statements.py makes the trials. `python -m tests.crash.statements` makes all of them, which
                  takes about half an hour; here is a part of them.
"""

from collections import Counter

import pytest

from tests.crash.statement_verbs import VERBS
from tests.crash.statements import START, WAYS, run_statements


@pytest.mark.parametrize(
    "chosen",
    [
        ["device add, a new file/errors/6", "snapshot rollback/error/13"],
        pytest.param(
            ["device add, a new file/kill/11", "device remove/error/12", "volume delete/error/17"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_statement_that_fails_leaves_nothing_half_done(chosen: list[str]) -> None:
    result = run_statements(*(word for trial in chosen for word in ("--trial", trial)))
    assert result.failures == []
    assert result.trials == Counter(trial.split("/")[1] for trial in chosen)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_some_statements_of_every_verb_leave_nothing_half_done() -> None:
    result = run_statements("--part", "3/127", timeout_s=380)
    assert result.failures == []
    assert sum(result.trials.values()) > 30
    assert set(result.trials) == set(WAYS)


def test_there_are_verbs_of_every_noun() -> None:
    nouns = {verb.partition(",")[0].split()[0] for verb in VERBS}
    assert nouns == {"device", "volume", "snapshot", "group", "schedule", "restore", "scrub", "reload"}
    assert START not in VERBS
