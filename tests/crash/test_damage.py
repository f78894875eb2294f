"""test_damage: a damaged, missing, older or swapped file in a state directory is reported, not served.

How it works      damage.py makes states and trials. `scripts/torture --only damage` does the same for longer.
"""

import random

import pytest

from tests.crash.damage import CLASSES, UNTOLD, Damage, class_of, run_damage
from tests.crash.state_images import File, Image


@pytest.mark.parametrize("count", [6, pytest.param(16, marks=pytest.mark.slow)])
def test_some_damages_are_told(count: int) -> None:
    result = run_damage(seed=1, count=count)
    assert result.failures == []
    assert result.trials == count


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_many_damages_are_told() -> None:
    result = run_damage(seed=2, count=160)
    assert result.failures == []
    assert result.trials == 160
    assert len(result.outcomes) > 25, "most kinds are drawn"
    outcomes = {outcome for each in result.outcomes.values() for outcome in each}
    assert outcomes == {"right", "eio", "not served", "refused"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [("flip", "catalog"), ("value", "catalog"), ("flip", "wal"), ("flip", "device")]
)
def test_many_flipped_bits_of_a_file_are_told(kind: tuple[str, str]) -> None:
    result = run_damage(seed=3, count=60, kind=kind)
    assert result.failures == []
    assert result.trials == 60


def test_every_kind_that_is_left_out_is_one() -> None:
    classes = {name for _, name in CLASSES}
    actions = {name[1:].replace("_", "-") for name in vars(Damage) if name.startswith("_")}
    for action, what in UNTOLD:
        assert what in classes
        assert action in actions


def test_a_damage_changes_what_it_says() -> None:
    whole: Image = {
        "state": None,
        "state/catalog.mark": File(9000, ((0, b"x" * 9000),)),
        "state/lock": File(0, ()),
    }
    older: Image = {"state": None, "state/catalog.mark": File(10, ((0, b"y" * 10),))}
    images = {"first": older, "earlier": whole, "killed": whole, "stopped": whole}
    seen = set()
    for seed in range(60):
        damage = Damage(images, random.Random(seed))
        damage.make()
        seen.add(damage.kind)
        assert damage.image != whole or damage.kind[0] == "truncate", damage.name
    assert {action for action, _ in seen} == {"drop", "flip", "truncate", "older-first"}
    assert class_of("state/control.sock") is None
