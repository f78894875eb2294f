"""test_scripts: every script tells its usage by itself, on a machine where nothing is set up.

How it works      The scripts are copied into a directory without .venv and run there with --help, with
                  nothing but the system's own programs on PATH. What they print names what they take.
"""

import re
import shutil
from pathlib import Path

import pytest

from tests.style.test_tidy import ROOT
from tests.support.daemon import BIN
from tests.support.proc import check, run

SCRIPTS = sorted(
    path.name for path in (ROOT / "scripts").iterdir() if path.is_file() and path.suffix != ".sh"
)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
PARSERS = {
    "bench": ["scripts.benchmark"],
    "flame": ["scripts.benchmark.flame"],
    "torture": ["tests.torture"],
}
"""The scripts whose options a Python module takes."""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone that nothing was set up in."""
    root = tmp_path_factory.mktemp("bare")
    for name in ("scripts", "systemd", "debian"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name)
    return root


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_told_without_setting_up(bare: Path, name: str) -> None:
    before = sorted(bare.rglob("*"))
    nothing = ("env", "-i", "PATH=/usr/bin:/bin", "HOME=/nonexistent")
    for option in ("--help", "-h"):
        result = run(*nothing, bare / "scripts" / name, option)
        assert (result.rc, result.err) == (0, "")
        assert result.out.startswith(f"usage: scripts/{name}")
    assert sorted(bare.rglob("*")) == before


def test_a_stage_that_does_not_exist_is_refused(bare: Path, tmp_path: Path) -> None:
    text = (ROOT / "scripts" / "test").read_text()
    known = re.findall(r'^STAGES="(.*)"$', text, re.MULTILINE)[0].split()
    assert known == re.findall(r"^(?:.*\|\| )?(?:stage|if wanted) ([a-z-]+)", text, re.MULTILINE)
    tools = tmp_path / "bin"  # nothing that could install anything, should the word be accepted
    tools.mkdir()
    for tool in ("bash", "cat", "dirname", "readlink"):
        (tools / tool).symlink_to(shutil.which(tool, path="/usr/bin:/bin") or tool)
    result = run("/usr/bin/env", "-i", f"PATH={tools}", bare / "scripts" / "test", "--only", "rufff")
    assert result.rc == 2
    assert result.err.startswith("scripts/test: there is no stage 'rufff'\nusage: ")


@pytest.mark.parametrize("name", PARSERS)
def test_an_option_that_does_not_exist_is_refused_before_anything_is_set_up(
    bare: Path, tmp_path: Path, name: str
) -> None:
    tools = tmp_path / "bin"  # nothing that could set anything up
    tools.mkdir()
    for tool in ("awk", "bash", "cat", "dirname", "readlink"):
        (tools / tool).symlink_to(shutil.which(tool, path="/usr/bin:/bin") or tool)
    text = (ROOT / "scripts" / name).read_text()
    valued = re.findall(r"^  (--[a-z-]+) [A-Z]+ ", text, re.MULTILINE)[0]
    for wrong, why in (
        (["--nonsense"], "there is no option '--nonsense'"),
        (["usage:"], "there is no option 'usage:'"),
        ([valued], f"{valued} needs a value: {valued} "),
    ):
        result = run("/usr/bin/env", "-i", f"PATH={tools}", bare / "scripts" / name, *wrong)
        assert (result.rc, result.out) == (2, "")
        assert result.err.startswith(f"scripts/{name}: {why}")
        assert f"\nusage: scripts/{name} " in result.err
    number = re.findall(r"^  (--[a-z-]+) [NS] ", text, re.MULTILINE)
    for option in number:
        for form in ([option, "x"], [f"{option}=x"]):
            result = run("/usr/bin/env", "-i", f"PATH={tools}", bare / "scripts" / name, *form)
            assert result.err.startswith(f"scripts/{name}: {option} takes a number, and 'x' is none\n")


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "scripts/hooks").iterdir()))
def test_a_hook_tells_how_it_is_used(bare: Path, name: str) -> None:
    said = check("env", "-i", "PATH=/usr/bin:/bin", bare / "scripts/hooks" / name, "--help")
    assert said.startswith(f"{name}: ")
    assert "How it is used" in said


@pytest.mark.parametrize("name", PARSERS)
def test_help_names_each_option(name: str) -> None:
    taken = check(BIN / "python", "-m", *PARSERS[name], "--help", cwd=ROOT)
    said = check(ROOT / "scripts" / name, "--help")
    assert set(OPTION.findall(taken)) - {"--help"} == set(OPTION.findall(said))
