"""The benchmark's arithmetic: medians of ratios, percentiles, targets met and not met, what is charged."""

import math
import os
from dataclasses import replace

import pytest

from scripts.benchmark import targets
from scripts.benchmark.alone import dirty_bytes, handed_bytes, switches, traced_calls
from scripts.benchmark.cases import CASES, LIMIT, LIMIT_REDIRECTING, NBDKIT, POLYVOL, SNAPSHOT_COUNTS, Case
from scripts.benchmark.charts import series
from scripts.benchmark.load import Sample, fio_time
from scripts.benchmark.report import rows_of, target_table
from scripts.benchmark.targets import Bound, Ratio, fails, percentile, ratio_of, verdicts

ZERO = Sample(1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
CASE = Case("a load", "randread", 4096, 16)
RATIO = Ratio("a load", POLYVOL, NBDKIT, 1.6)
CPU = Ratio("a load", POLYVOL, NBDKIT, 0.65, "server_us", at_most=True)
STALL = Bound("the stall", "cuts.stall", 1.0, "ms")


def samples(*rates: float, server_us: float = 1.0) -> list[Sample]:
    return [replace(ZERO, iops=rate, server_us=server_us) for rate in rates]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "RATIOS", (RATIO, CPU))
    monkeypatch.setattr(targets, "BOUNDS", (STALL,))


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    # Of the medians it would be 200 / 100.
    assert ratio_of(samples(100, 200, 900), samples(100, 50, 300)) == 3.0


def test_turns_of_two_cases_need_not_be_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Ratio("four", POLYVOL, POLYVOL, 1.0, other_case="one")
    monkeypatch.setattr(targets, "RATIOS", (target,))
    monkeypatch.setattr(targets, "BOUNDS", ())
    cases = [(replace(CASE, name="four"), {POLYVOL: samples(100, 300, 200)})]
    cases += [(replace(CASE, name="one"), {POLYVOL: samples(90, 100, 110, 100, 100)})]
    (verdict,) = verdicts(cases, {})
    assert verdict.measured == 2.0


def test_a_ratio_to_nothing_is_infinite() -> None:
    assert ratio_of(samples(5), samples(0)) == math.inf


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(value) for value in range(200, 0, -1)]
    assert percentile(values, 0.99) == 198
    assert percentile(values, 0.5) == 100
    assert percentile([7.0], 0.99) == 7


@pytest.mark.usefixtures("few")
def test_targets_are_met_exactly_at_their_bound() -> None:
    rows = [(CASE, {POLYVOL: samples(160, server_us=0.65), NBDKIT: samples(100)})]
    found = verdicts(rows, {"cuts.stall": 1.0})
    assert [verdict.word for verdict in found] == ["met", "met", "met"]
    assert not fails(found, complete=True)


@pytest.mark.usefixtures("few")
def test_a_miss_in_either_direction_is_told_and_fails() -> None:
    rows = [(CASE, {POLYVOL: samples(159, server_us=0.66), NBDKIT: samples(100)})]
    found = verdicts(rows, {"cuts.stall": 1.01})
    assert [verdict.met for verdict in found] == [False, False, False]
    assert fails(found, complete=False)
    assert target_table(found).count("NOT MET") == 3


def test_a_bound_beyond_what_can_be_reached_says_so_and_is_not_met(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = Bound("the disk", "disk.ours", 0.9, "x", at_most=False, limit="disk.best")
    monkeypatch.setattr(targets, "RATIOS", ())
    monkeypatch.setattr(targets, "BOUNDS", (bound,))
    (verdict,) = verdicts([], {"disk.ours": 0.7, "disk.best": 0.83})
    assert (verdict.met, "0.83" in verdict.remark) == (False, True)
    (verdict,) = verdicts([], {"disk.ours": 0.7, "disk.best": 0.95})
    assert (verdict.met, verdict.remark) == (False, "")
    (verdict,) = verdicts([], {"disk.ours": 0.9, "disk.best": 0.83})
    assert (verdict.met, verdict.remark) == (True, "")


def test_fio_is_told_less_than_a_second() -> None:
    # "0.44" it takes for 0, and a turn has no end.
    assert fio_time(0.44) == "440ms"


def busy(found: list[Sample]) -> list[Sample]:
    return [replace(sample, client_cores=0.95) for sample in found]


@pytest.mark.usefixtures("few")
def test_where_fio_is_what_bounds_the_rate_the_other_generator_counts() -> None:
    twin = replace(CASE, generator="load")
    fio, load = samples(130, server_us=0.7), samples(170, server_us=0.6)
    rows = [(CASE, {POLYVOL: fio, NBDKIT: busy(samples(100))}), (twin, {POLYVOL: load, NBDKIT: samples(100)})]
    rate, cpu, _ = verdicts(rows, {})
    assert (rate.measured, cpu.measured) == (1.7, 0.6)
    assert rate.remark == "by load.rs; fio, itself busy, has 1.30"
    idle = [(CASE, {POLYVOL: fio, NBDKIT: samples(100)}), rows[1]]
    assert verdicts(idle, {})[0].measured == 1.3
    assert verdicts(rows[:1], {})[0].measured == 1.3, "nothing else was measured"


@pytest.mark.usefixtures("few")
def test_what_was_not_measured_fails_a_complete_run_only() -> None:
    found = verdicts([(CASE, {POLYVOL: samples(1)})], {})
    assert [verdict.word for verdict in found] == ["not measured"] * 3
    assert not fails(found, complete=False)
    assert fails(found, complete=True)


@pytest.mark.usefixtures("few")
def test_a_target_that_the_limit_misses_too_says_so_and_is_not_met() -> None:
    rounds = {POLYVOL: samples(110, server_us=0.7), NBDKIT: samples(100), LIMIT: samples(120, server_us=0.5)}
    rate, cpu, _ = verdicts([(CASE, rounds)], {})
    assert (rate.met, rate.remark) == (False, "beyond the limit, which has 1.20")
    assert (cpu.met, cpu.remark) == (False, "")


def test_how_far_one_can_get_may_be_told_by_other_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    redirecting = Ratio(CASE.name, POLYVOL, NBDKIT, 0.95, limit=(LIMIT_REDIRECTING, LIMIT))
    monkeypatch.setattr(targets, "RATIOS", (redirecting,))
    monkeypatch.setattr(targets, "BOUNDS", ())
    rounds = {POLYVOL: samples(70), NBDKIT: samples(100), LIMIT: samples(200)}
    (unknown,) = verdicts([(CASE, rounds)], {})
    (beyond,) = verdicts([(CASE, rounds | {LIMIT_REDIRECTING: samples(150)})], {})
    (within,) = verdicts([(CASE, rounds | {LIMIT_REDIRECTING: samples(196)})], {})
    assert (unknown.met, unknown.remark) == (False, "")
    assert (beyond.met, beyond.remark) == (False, "beyond the limit, which has 0.75")
    assert (within.met, within.remark) == (False, "")


def test_a_target_may_compare_with_another_case(monkeypatch: pytest.MonkeyPatch) -> None:
    four = Ratio("four", POLYVOL, POLYVOL, 1.0, other_case="one")
    monkeypatch.setattr(targets, "RATIOS", (four,))
    monkeypatch.setattr(targets, "BOUNDS", ())
    rows = [
        (replace(CASE, name="four"), {POLYVOL: samples(99)}),
        (replace(CASE, name="one"), {POLYVOL: samples(100)}),
    ]
    (verdict,) = verdicts(rows, {})
    assert (verdict.measured, verdict.met) == (0.99, False)


def test_every_target_has_its_case_and_its_servers() -> None:
    by_name: dict[str, set[str]] = {}
    for case in CASES:
        by_name.setdefault(case.name, set()).update(case.servers)
    for target in targets.RATIOS:
        assert target.server in by_name[target.case], target.title
        assert target.reference in by_name[target.other_case or target.case], target.title


def test_cases_have_titles_of_their_own_and_ask_for_ever_more_snapshots() -> None:
    titles = [case.title for case in CASES]
    assert len(set(titles)) == len(titles)
    for place in ("read", "write", "durable"):
        counts = [case.snapshots for case in CASES if case.place == place and case.snapshots]
        assert counts == sorted(counts)
        assert set(counts) <= set(SNAPSHOT_COUNTS)


def test_a_row_has_medians_and_spread() -> None:
    ours, _ = rows_of(CASE, {POLYVOL: samples(90, 100, 130), NBDKIT: samples(100, 50, 100)})
    assert ours.median("iops") == 100
    assert ours.spread() == pytest.approx(0.3)
    assert ours.ratio(NBDKIT) == 1.3
    assert ours.ratio(LIMIT) is None


def test_charts_take_the_main_cases_by_fio() -> None:
    case = next(case for case in CASES if case.name == "4k random read, depth 16" and case.generator == "fio")
    rows = rows_of(case, {POLYVOL: samples(200), NBDKIT: samples(100)})
    rows += rows_of(replace(case, generator="load"), {POLYVOL: samples(999)})
    rows += rows_of(replace(case, name="another"), {POLYVOL: samples(999)})
    found = series({"rows": [row.as_json() for row in rows]}, "iops")
    assert found == {case.name: {POLYVOL: 200.0, NBDKIT: 100.0}}


def test_bytes_that_a_process_has_handed_over() -> None:
    text = "rchar: 1\nwchar: 8192\nread_bytes: 4\nwrite_bytes: 5\ncancelled_write_bytes: 6\n"
    assert handed_bytes(text) == 8192


def test_dirty_bytes_are_those_of_the_directory() -> None:
    def mapping(path: str, shared: int) -> str:
        head = f"7f00-7f01 rw-s 00000000 fe:00 1234      {path}\nSize: 8 kB\n"
        return f"{head}Shared_Dirty: {shared} kB\nPrivate_Dirty: 4 kB\n"

    smaps = mapping("/state/v/journal", 8) + mapping("/elsewhere/journal", 16) + mapping("", 32)
    assert dirty_bytes(smaps, "/state/") == 12 << 10


def test_calls_that_strace_has_counted() -> None:
    text = """% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 90.00    0.001000          10       100           fdatasync
 10.00    0.000100          10        20         3 msync
------ ----------- ----------- --------- --------- ----------------
100.00    0.001100          10       120         3 total
"""
    assert traced_calls(text) == 120


def test_the_switches_of_this_process_are_there() -> None:
    found = switches(os.getpid())
    assert os.getpid() in found
    assert all(count >= 0 for _, count in found.values())
