"""test_torture: the torture tells what it has tried, keeps what was lost, and can try it again."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.torture.__main__ import Torture, campaigns, main
from tests.torture.campaign import AGAIN, Outcome, fail, failed


class Losing:
    """A campaign that loses something in its third round."""

    name = "losing"
    unit = "coins"
    share = 1.0

    def missing(self) -> str | None:
        return None

    def round(self, seed: int, seconds: float, count: int | None, directory: Path) -> Outcome:
        outcome = Outcome(Counter(coins=10))
        if seed == 7:
            outcome.failures.append(fail(directory, self.name, "a coin is gone", coin="7"))
        return outcome

    def again(self, facts: dict[str, str], directory: Path) -> Outcome:
        return self.round(int(facts["coin"]), 0, None, directory)


def test_a_loss_ends_it_and_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torture = Torture([Losing()], 5, tmp_path)
    torture.run(60, None)
    assert "losing, seed 7: 10 coins, lost 1" in capsys.readouterr().out
    assert torture.table()[1].split()[:4] == ["losing", "30", "coins", "1"]
    assert [path.name for path in tmp_path.iterdir()] == ["losing-7"]
    campaign, facts = failed([Losing()], tmp_path / "losing-7")
    assert campaign.again(facts, tmp_path).failures[0].what == "a coin is gone"


def test_a_round_that_cannot_be_tried_is_a_loss(tmp_path: Path) -> None:
    class Broken(Losing):
        def round(self, seed: int, seconds: float, count: int | None, directory: Path) -> Outcome:
            raise OSError("no such device")

    torture = Torture([Broken()], 5, tmp_path)
    torture.run(60, 1)
    assert [failure.what for _, failure in torture.failures] == ["the round itself failed: no such device"]


def test_a_count_is_one_round_and_tells_its_evidence(tmp_path: Path) -> None:
    torture = Torture([Losing()], 7, tmp_path)
    torture.run(60, 10)
    [(_, failure)] = torture.failures
    assert failure.command == f"scripts/torture --again {tmp_path / 'losing-7'}"
    assert json.loads((failure.evidence / AGAIN).read_text())["coin"] == "7"


@pytest.mark.parametrize(
    "name",
    [
        "power-cuts",
        "damage",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("kills", "soak", "lineage", "faults")),
    ],
)
def test_a_short_torture_loses_nothing(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    lose_nothing(tmp_path, name, 2, capsys)


@pytest.mark.slow
def test_a_pass_through_the_script_loses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lose_nothing(tmp_path, "calls", 1, capsys)


def lose_nothing(tmp_path: Path, name: str, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--only", name, "--seed", "3", "--count", str(count), "--evidence", str(tmp_path)]
    assert main(words) == 0, capsys.readouterr().out
    table = capsys.readouterr().out.splitlines()
    assert any(line.split()[0] == name and line.split()[3] == "0" for line in table if line.strip())


def test_every_campaign_has_a_share_and_another_name() -> None:
    every = campaigns()
    assert len({one.name for one in every}) == len(every) == 9
    assert sum(one.share for one in every) == pytest.approx(1.0)


@pytest.mark.parametrize("words", [[], ["--minutes", "1", "--count", "1"], ["--only", "nothing"]])
def test_bad_arguments_are_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(words)
    assert refused.value.code == 2
