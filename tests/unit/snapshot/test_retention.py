"""Retention and timing: which rule keeps what, that no order of looking matters, and what is due when."""

from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from hypothesis import given, strategies as st

from polyvol.mapping.ids import Epoch, VolumeId
from polyvol.mapping.records.snapshots import SnapshotRecord
from polyvol.snapshot.retention import Keep, doubtful, droppable, kept, parse_keep
from polyvol.snapshot.timing import SECOND_NS, Timing, check_cron, format_duration, parse_duration

HOUR = 3600 * SECOND_NS
MIDNIGHT = int(datetime(2026, 11, 23, tzinfo=UTC).timestamp()) * SECOND_NS


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND_NS


def kept_instants(instants: list[int], keep: Keep) -> list[int]:
    """What is kept of snapshots by a clock that was right."""
    return [instants[number] for number in sorted(kept(instants, keep, max(instants)))]


def test_last_keeps_the_newest() -> None:
    assert kept_instants([1, 2, 3, 4, 5], Keep(last=2)) == [4, 5]


def test_each_hour_is_kept_by_its_newest_snapshot() -> None:
    instants = [MIDNIGHT + quarter * HOUR // 4 for quarter in range(12)]
    assert kept_instants(instants, Keep(hourly=2)) == [instants[7], instants[11]]


def test_hours_without_a_snapshot_do_not_count() -> None:
    instants = [MIDNIGHT, MIDNIGHT + 10 * HOUR, MIDNIGHT + 20 * HOUR]
    assert kept_instants(instants, Keep(hourly=2)) == instants[1:]


def test_weeks_begin_on_monday_and_years_do_not_split_them() -> None:
    thursday, sunday, monday = at("2026-12-31T12:00"), at("2027-01-03T23:59"), at("2027-01-04T00:00")
    assert kept_instants([thursday, sunday, monday], Keep(weekly=5)) == [sunday, monday]


def test_months_and_reasons() -> None:
    october, november = at("2026-10-31T23:59"), at("2026-11-01T00:00")
    assert kept([october, november], Keep(last=1, monthly=3), november) == {
        1: ["last", "monthly"],
        0: ["monthly"],
    }


KEEPS = st.builds(
    Keep,
    last=st.integers(0, 4),
    hourly=st.integers(0, 5),
    daily=st.integers(0, 5),
    weekly=st.integers(0, 3),
    monthly=st.integers(1, 3),
)


def moments(minutes: int, begin: int = 0) -> st.SearchStrategy[int]:
    """Instants of whole minutes: of nanoseconds, most that are drawn would lie in one hour."""
    return st.integers(0, minutes).map(lambda minute: begin + minute * HOUR // 60)


TIMES = st.sampled_from((3 * 60, 60 * 1440, 4000 * 1440)).flatmap(
    lambda minutes: st.lists(moments(minutes), min_size=1, max_size=60)
)


@given(TIMES, KEEPS)
def test_rules_applied_after_each_snapshot_leave_what_they_leave_at_the_end(
    instants: list[int], keep: Keep
) -> None:
    instants.sort()
    there: list[int] = []
    for instant in instants:
        there.append(instant)
        there = [there[number] for number in sorted(kept(there, keep, instant))]
    assert there == kept_instants(instants, keep)


@given(TIMES, KEEPS, moments(100 * 1440))
def test_whatever_the_clock_did_the_newest_stay_and_no_rule_keeps_twice_its_number(
    instants: list[int], keep: Keep, now: int
) -> None:
    found = kept(instants, keep, now)
    assert len(instants) - 1 in found, "a run deletes what it has just taken"
    newest = range(max(0, len(instants) - keep.last), len(instants))
    assert [number for number in sorted(found) if "last" in found[number]] == list(newest)
    for rule, count in keep.rules().items():
        assert sum(rule in reasons for reasons in found.values()) <= 2 * count


@given(TIMES, KEEPS, st.data())
def test_what_was_taken_while_the_clock_was_ahead_takes_nobody_s_place(
    instants: list[int], keep: Keep, data: st.DataObject
) -> None:
    """Of the others all is kept that a right clock would have kept."""
    instants.sort()
    now = instants[-1]
    begin, end = sorted(data.draw(st.tuples(*[st.integers(0, len(instants))] * 2)))
    ahead = moments(100 * 1440, now + 1)
    wrong = [*instants[:begin], *(data.draw(ahead) for _ in range(begin, end)), *instants[end:]]
    right, found = kept(instants, keep, now), kept(wrong, keep, now)
    for number in set(range(len(instants))) - set(range(begin, end)):
        assert set(right.get(number, [])) <= set(found.get(number, [])), f"{wrong}: {number} is lost"


def test_snapshots_of_the_future_go_when_they_would_have_gone_with_a_right_clock() -> None:
    before, ahead = MIDNIGHT - HOUR, MIDNIGHT + 400 * 24 * HOUR
    instants, numbers = [before, ahead, ahead + HOUR], [0, 1, 2]
    keep = Keep(hourly=3)
    for hour in range(4):
        instants.append(MIDNIGHT + hour * HOUR)
        numbers.append(3 + hour)
        left = sorted(kept(instants, keep, instants[-1]))
        instants, numbers = [instants[each] for each in left], [numbers[each] for each in left]
        expected = {0: [0, 1, 2, 3], 1: [0, 1, 2, 3, 4], 2: [3, 4, 5], 3: [4, 5, 6]}
        assert numbers == expected[hour]


def test_the_fewest_times_are_in_doubt() -> None:
    assert doubtful([10, 20, 900, 30, 40], 1000) == {2}, "ahead, and no longer in the future"
    assert doubtful([10, 20, 0, 30, 40], 1000) == {2}, "back to 1970 for a while"
    assert doubtful([10, 20, 30], 15) == {1, 2}, "the clock is behind now"
    assert doubtful([20, 10], 1000) == {0}, "the newer one is believed"
    assert doubtful([10, 10, 10], 10) == set()
    assert doubtful([], 10) == set()


def test_the_oldest_by_epoch_is_dropped_first_whatever_its_time() -> None:
    cut = UUID(int=1)
    made = [
        SnapshotRecord(
            uuid4(),
            cut,
            VolumeId(1),
            f"s{epoch}",
            Epoch(epoch),
            100 - epoch,
            0,
            0,
            (),
            origin="schedule",
        )
        for epoch in (3, 1, 2)
    ]
    assert [each.epoch for each in droppable(made)] == [1, 2, 3]


def test_two_snapshots_of_one_nanosecond_are_two() -> None:
    assert kept([7, 7, 7], Keep(last=2), 7) == {1: ["last"], 2: ["last"]}
    assert kept([7, 7, 7], Keep(hourly=2), 7) == {2: ["hourly"]}


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
        ("last=" + "9" * 5000, "is no rule"),
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
def test_a_duration_is_the_same_after_it_was_formatted(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "m", "1.5h", "-1s", "1y", "\uff11m"])
def test_durations_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)
