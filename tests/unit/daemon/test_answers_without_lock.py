"""test_answers_without_lock: what a verb answers is made after `catalog_lock` is released (decision 44)."""

from typing import Any

import pytest

from polyvol.daemon.schedules import facts
from tests.unit.conftest import Daemon


def test_the_views_of_schedules_and_groups_are_made_without_catalog_lock(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.ok("volume", "create", "v", "--size", "1M")
    context = daemon.service._context
    seen: list[bool] = []

    def noting(made: Any) -> Any:
        def view(*arguments: Any, **named: Any) -> Any:
            seen.append(context.catalog_lock.mine)
            return made(*arguments, **named)

        return view

    monkeypatch.setattr("polyvol.daemon.schedules.verbs.records_of", noting(facts.records_of))
    monkeypatch.setattr(context.catalog.groups, "snapshots", noting(context.catalog.groups.snapshots))
    for command in (
        "schedule add v --every 1h --keep last=2 --name x",
        "schedule pause x",
        "schedule resume x",
        "schedule remove x",
        "group create g v",
        "group leave g v",
        "group join g v",
    ):
        seen.clear()
        daemon.ok(*command.split())
        assert seen, command
        assert not any(seen), command
