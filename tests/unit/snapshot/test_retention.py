"""Retention and timing: which rule keeps what, that no order of looking matters, and what is due when."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyvol.snapshot.retention import Keep, kept, parse_keep
from polyvol.snapshot.timing import SECOND_NS, Timing, check_cron, format_duration, parse_duration

HOUR = 3600 * SECOND_NS
MIDNIGHT = int(datetime(2026, 11, 23, tzinfo=UTC).timestamp()) * SECOND_NS


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND_NS


def test_last_keeps_the_newest() -> None:
    assert sorted(kept([1, 5, 3, 4, 2], Keep(last=2))) == [4, 5]


def test_each_hour_is_kept_by_its_newest_snapshot() -> None:
    instants = [MIDNIGHT + quarter * HOUR // 4 for quarter in range(12)]
    assert sorted(kept(instants, Keep(hourly=2))) == [instants[7], instants[11]]


def test_hours_without_a_snapshot_do_not_count() -> None:
    instants = [MIDNIGHT, MIDNIGHT + 10 * HOUR, MIDNIGHT + 20 * HOUR]
    assert sorted(kept(instants, Keep(hourly=2))) == instants[1:]


def test_weeks_begin_on_monday_and_years_do_not_split_them() -> None:
    thursday, sunday, monday = at("2026-12-31T12:00"), at("2027-01-03T23:59"), at("2027-01-04T00:00")
    assert sorted(kept([thursday, sunday, monday], Keep(weekly=5))) == [sunday, monday]


def test_months_and_reasons() -> None:
    october, november = at("2026-10-31T23:59"), at("2026-11-01T00:00")
    assert kept([october, november], Keep(last=1, monthly=3)) == {
        november: ["last", "monthly"],
        october: ["monthly"],
    }


@given(
    st.lists(st.integers(0, 4000 * 24 * HOUR), min_size=1, max_size=60, unique=True),
    st.builds(
        Keep,
        last=st.integers(0, 4),
        hourly=st.integers(0, 5),
        daily=st.integers(0, 5),
        weekly=st.integers(0, 3),
        monthly=st.integers(1, 3),
    ),
)
def test_rules_applied_after_each_snapshot_leave_what_they_leave_at_the_end(
    instants: list[int], keep: Keep
) -> None:
    there: set[int] = set()
    for instant in sorted(instants):
        there = set(kept([*there, instant], keep))
    assert there == set(kept(instants, keep))


def test_rules_are_read_and_written() -> None:
    keep = parse_keep("last=4, hourly=24,monthly=12")
    assert keep == Keep(last=4, hourly=24, monthly=12)
    assert str(keep) == "last=4,hourly=24,monthly=12"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no rule"),
        ("last", "is no rule"),
        ("yearly=1", "is no rule"),
        ("last=-1", "is no rule"),
        ("last=²", "is no rule"),
        ("last=1,last=2", "twice"),
        ("last=0", "nothing would be kept"),
        ("last=10001", "cannot be kept"),
    ],
)
def test_rules_that_are_none_are_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_keep(text)


def test_an_interval_is_due_at_its_multiples() -> None:
    timing = Timing(every_s=900)
    assert timing.after(MIDNIGHT + 1) == MIDNIGHT + HOUR // 4
    assert timing.after(MIDNIGHT + HOUR // 4) == MIDNIGHT + HOUR // 2
    assert len(list(timing.between(MIDNIGHT, MIDNIGHT + 24 * HOUR))) == 96


def test_cron_is_in_utc_and_summer_time_makes_no_difference() -> None:
    timing = Timing(cron="30 2 * * *")
    assert timing.after(at("2026-03-29T00:00")) == at("2026-03-29T02:30")  # Europe has no such hour
    runs = list(timing.between(at("2026-10-24T12:00"), at("2026-10-26T12:00")))
    assert runs == [at("2026-10-25T02:30"), at("2026-10-26T02:30")]
    assert runs[0] == timing.after(at("2026-10-24T12:00"))


@pytest.mark.parametrize("expression", ["", "* * * *", "61 * * * *", "a b c d e", "0 0 30 2 *"])
def test_cron_expressions_that_are_none_are_refused(expression: str) -> None:
    with pytest.raises(ValueError, match="cron expression"):
        check_cron(expression)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("15m", 900), ("2h", 7200), ("1d", 86400)])
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "m", "1.5h", "-1s", "1y", "\uff11m"])
def test_durations_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)
