"""The version of this polyvol and what it was built from: for --version, the API, and both ends of the API.

How it works      A package (wheel, .deb, scripts/install) has build.json beside this file, which setup.py
                  writes when the package is built: the commit and the date. The date is that of
                  $SOURCE_DATE_EPOCH if it is set, so that a build can be repeated. Polyvol that is run from
                  its sources reads the commit from the files of .git there. Sources without .git have it from
                  debian/commit, which `debian/rules clean` writes when a source package is made, or from
                  _ARCHIVED, which `git archive` fills in. The engine says how it was compiled.
Invariants        VS1 no program is run, and in a package nothing but build.json is read.
Errors            None: what is not known is None.
"""

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_HERE = Path(__file__).resolve().parent
BUILD_FILE = "build.json"
_ARCHIVED = "$Format:%H$"
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Build:
    """What a polyvol was built from. `commit`: of its sources; `date`: of the package, None where it is run
    from its sources; `profile` and `rustc`: how its engine was compiled, and by which version."""

    commit: str | None
    date: str | None
    profile: str | None
    rustc: str | None


@cache
def version() -> str:
    """As the package says it."""
    import importlib.metadata  # loads much, and most commands do not need it

    return importlib.metadata.version("polyvol")


@cache
def build() -> Build:
    """What this polyvol was built from."""
    commit = date = profile = rustc = None
    try:
        recorded = json.loads((_HERE / BUILD_FILE).read_text(encoding="utf-8"))
        commit, date = recorded["commit"], recorded["date"]
    except (OSError, ValueError, KeyError, TypeError):
        commit = source_commit(_HERE.parent)
    with suppress(ImportError, AttributeError):
        from polyvol import engine  # only --version and the daemon need it

        profile, rustc = engine.__profile__, engine.__rustc__
    return Build(commit=commit, date=date, profile=profile, rustc=rustc)


def version_text(program: str) -> str:
    """What `PROGRAM --version` prints."""
    return f"{program} {version()} ({build_text(build())})"


def build_text(made: Build) -> str:
    """A build, for people."""
    commit = f"commit {made.commit[:_SHOWN]}" if made.commit else "commit unknown"
    date = f"built {made.date}" if made.date else "run from its sources"
    engine = f"engine {made.profile}, rustc {made.rustc}" if made.profile else "engine not loadable"
    return f"{commit}, {date}, {engine}"


def source_commit(root: Path) -> str | None:
    """The commit of the sources in this directory."""
    found = _git_commit(root)
    if found is None:
        with suppress(OSError, UnicodeError):
            found = (root / "debian" / "commit").read_text(encoding="ascii").strip()
    return next((each for each in (found, _ARCHIVED) if each and _COMMIT.fullmatch(each)), None)


def _git_commit(root: Path) -> str | None:
    """The commit that is checked out, read from git's own files; None if there are none."""
    with suppress(OSError, UnicodeError, IndexError):
        git = root / ".git"
        if git.is_file():  # of a further work tree, or a submodule
            git = root / git.read_text(encoding="utf-8").strip().removeprefix("gitdir: ")
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head
        branch = head.removeprefix("ref: ")
        common = git
        with suppress(FileNotFoundError):
            common = git / (git / "commondir").read_text(encoding="utf-8").strip()
        with suppress(FileNotFoundError):
            return (common / branch).read_text(encoding="utf-8").strip()
        for line in (common / "packed-refs").read_text(encoding="utf-8").splitlines():
            if line.endswith(f" {branch}"):
                return line.split()[0]
    return None
