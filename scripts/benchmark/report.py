"""report: medians of rounds, ratios to the other servers, targets met and not met; as tables and as JSON.

How it works      A ratio is taken within each round, server against server in the same minute, and its median
                  over the rounds is shown: what disturbs the machine for longer than a turn disturbs both.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scripts.benchmark.cases import REFERENCES, Case
from scripts.benchmark.load import CLIENT_BUSY_CORES, Sample
from scripts.benchmark.targets import Verdict, ratio_of


@dataclass(frozen=True)
class Row:
    """One server's rounds of one case, and those of the case's other servers by name."""

    case: Case
    server: str
    rounds: list[Sample]
    beside: dict[str, list[Sample]]

    def median(self, field: str) -> float:
        """The median over the rounds of one of the figures."""
        return float(statistics.median(getattr(sample, field) for sample in self.rounds))

    def spread(self) -> float:
        """How far the rounds' rates are from their median, at most, as a share of it."""
        median = self.median("iops")
        return max(abs(sample.iops - median) for sample in self.rounds) / median

    def ratio(self, reference: str) -> float | None:
        """How many times the reference's rate this one's is."""
        others = self.beside.get(reference)
        return None if others is None else ratio_of(self.rounds, others)

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "case": asdict(self.case),
            "server": self.server,
            "median": {field: self.median(field) for field in Sample.__dataclass_fields__},
            "ratios": {name: self.ratio(name) for name in REFERENCES if name != self.server},
            "rounds": [asdict(sample) for sample in self.rounds],
        }


def rows_of(case: Case, rounds: dict[str, list[Sample]]) -> list[Row]:
    """The rows of one case, from each server's samples."""
    return [Row(case, server, samples, rounds) for server, samples in rounds.items()]


def case_table(rows: Sequence[Row]) -> str:
    """The table of the cases."""
    titles = ("server", "rate", "+-%", "p50", "p99", "p99.9", "CPU/req", "memory", "client")
    lines = [(*titles, *(f"/{name.split()[0]}" for name in REFERENCES))]
    for row in rows:
        rate = (
            f"{row.median('iops') / 1000:.1f} k/s"
            if row.case.block <= 4096
            else f"{row.median('mib_s'):.0f} MiB/s"
        )
        client = row.median("client_cores")
        lines.append(
            (
                row.server,
                rate,
                f"{row.spread() * 100:.0f}",
                *(f"{row.median(field):.0f}" for field in ("p50_us", "p99_us", "p99_9_us")),
                f"{row.median('server_us'):.1f}",
                f"{row.median('peak_mib'):.0f}",
                f"{client:.2f}{'*' if client >= CLIENT_BUSY_CORES else ' '}",
                *_ratios(row),
            )
        )
    return _aligned(lines)


def _ratios(row: Row) -> Iterator[str]:
    for name in REFERENCES:
        ratio = row.ratio(name)
        yield "-" if ratio is None or name == row.server else f"{ratio:.2f}"


def target_table(found: Sequence[Verdict]) -> str:
    """The table of the targets, met or not."""
    lines = [("target", "wanted", "measured", "", "")]
    for verdict in found:
        measured = "-" if verdict.measured is None else f"{verdict.measured:.3g}"
        lines.append((verdict.title, verdict.wanted, measured, verdict.word, verdict.remark))
    return _aligned(lines)


def figure_table(figures: Mapping[str, float]) -> str:
    """The table of the figures that stand by themselves."""
    return _aligned([(name, f"{value:.4g}") for name, value in figures.items()])


def _aligned(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  "
        + "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
