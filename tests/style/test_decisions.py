"""test_decisions: each decision has a status, names what it supersedes, and is in the index.

How it works      A page begins with its title, "# N. Title", and a line "Status: ...", whose form
                  docs/decisions/README.md shows. Where one page names another there, that one names it too.
Errors            A complaint names the page, and what it lacks.
"""

import re

from tests.style.test_tidy import ROOT, repository_files

FOLDER = ROOT / "docs" / "decisions"
LINK = re.compile(r"\[([1-9][0-9]*)\]\(([^)]+)\)")
LINKS = r"\[\d+\]\([^)]+\)(?: \([^()]+\))?(?:, \[\d+\]\([^)]+\)(?: \([^()]+\))?)*"
STATUS = re.compile(
    rf"Status: (?:accepted|superseded by (?P<by>{LINKS}))"
    rf"(?:; superseded in part by (?P<part_by>{LINKS}))?"
    rf"(?:; supersedes part of (?P<part_of>{LINKS}))?"
    rf"(?:; supersedes (?P<of>{LINKS}))?\."
)
OTHER_SIDE = {"by": "of", "of": "by", "part_by": "part_of", "part_of": "part_by"}


def pages() -> dict[str, str]:
    """Name to text of each decision."""
    found = repository_files("docs/decisions/[0-9]*.md")
    return {path.name: path.read_text() for path in found}


def relations(text: str) -> dict[str, set[str]] | None:
    """The pages that a status names, by how it does; None if there is no status."""
    match = STATUS.fullmatch((text.splitlines() + [""] * 3)[2])
    if not match:
        return None
    return {how: {link[2] for link in LINK.finditer(named or "")} for how, named in match.groupdict().items()}


def complaints(texts: dict[str, str]) -> list[str]:
    """What is wrong with these pages, as they begin."""
    found = []
    status = {name: relations(text) for name, text in texts.items()}
    for name, text in texts.items():
        number = int(name[:4])
        if not text.startswith(f"# {number}. "):
            found.append(f"{name}: does not begin with '# {number}. '")
        named = status[name]
        if named is None:
            found.append(f"{name}: its third line is no status: see docs/decisions/README.md")
            continue
        for how, others in named.items():
            for other in sorted(others):
                if name not in ((status.get(other) or {}).get(OTHER_SIDE[how]) or ()):
                    found.append(f"{name}: names {other} in its status, which does not name it")
        found += [f"{name}: calls {label} {page}" for label, page in wrong_numbers(text)]
    return found


def wrong_numbers(text: str) -> list[tuple[str, str]]:
    """Links to decisions whose text is another number than the page's."""
    first = text.splitlines()[2:3]
    return [
        (link[1], link[2])
        for line in first
        for link in LINK.finditer(line)
        if int(link[1]) != int(link[2][:4])
    ]


def index_complaints(index: str, texts: dict[str, str]) -> list[str]:
    """Which pages an index lacks, has twice, or calls by another title."""
    listed = re.findall(r"^- \[([^]]+)\]\((\d[^)]+)\)", index, re.MULTILINE)
    found = [f"{name}: is {[page for _, page in listed].count(name)} times in the index" for name in texts]
    return [each for each in found if " 1 times" not in each] + [
        f"{page}: the index calls it '{title}'"
        for title, page in listed
        if texts.get(page, "").splitlines()[:1] != [f"# {title}"]
    ]


def test_each_decision_has_a_status_and_both_sides_name_each_other() -> None:
    assert len(pages()) > 40
    assert complaints(pages()) == []


def test_the_index_has_each_decision() -> None:
    assert index_complaints((FOLDER / "README.md").read_text(), pages()) == []


# Each check can fail.


def test_a_missing_status_and_a_side_that_is_silent_are_noticed() -> None:
    old = "# 1. Old\n\nStatus: superseded by [2](0002-new.md).\n"
    part = "# 1. Old\n\nStatus: accepted; superseded in part by [2](0002-new.md) (the lock).\n"
    new = "# 2. New\n\nStatus: accepted; supersedes [1](0001-old.md).\n"
    assert complaints({"0001-old.md": old, "0002-new.md": new}) == []
    assert len(complaints({"0001-old.md": part, "0002-new.md": new})) == 2
    assert complaints({"0001-old.md": "# 1. Old\n\nWe decided.\n"}) == [
        "0001-old.md: its third line is no status: see docs/decisions/README.md"
    ]
    assert complaints({"0003-a.md": "# 4. A\n\nStatus: accepted.\n"}) == [
        "0003-a.md: does not begin with '# 3. '"
    ]
    both = {"0001-old.md": old.replace("[2]", "[3]"), "0002-new.md": new}
    assert complaints(both) == ["0001-old.md: calls 3 0002-new.md"]


def test_a_page_that_the_index_lacks_is_noticed() -> None:
    assert index_complaints("- [1. Old](0001-old.md)\n", {"0001-old.md": "# 1. Old\n"}) == []
    assert index_complaints("- [1. Older](0001-old.md)\n", {"0001-old.md": "# 1. Old\n"}) != []
    assert index_complaints("", {"0001-old.md": "# 1. Old\n"}) == ["0001-old.md: is 0 times in the index"]
