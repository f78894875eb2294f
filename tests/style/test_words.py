"""test_words: words that make a text hard to read, refused in code, comments and docs.

How it works      HABITS has each word with what to write instead. Every line of each file that a person
                  writes is searched, without regard to case. This file has the words, and docs/glossary.md
                  has those of other systems, so both are left out; CHANGELOG.md is history, and SQLite
                  keeps the text of *.sql in catalogs that exist. In *.py the
                  habits of PYTHON are searched for too, in *.md those of PAGES.
Errors            A complaint names file and line, the word, and what to write instead.
"""

import re
from functools import cache
from pathlib import Path

import pytest

from tests.style.test_tidy import GLOSSARY, ROOT, line_of, repository_files, sources, texts, where

HABITS = {
    # Archaic, or with a plainer word.
    r"thereof|whereof|wherein|whereupon|thence|hitherto|forthwith": "a sentence of its own",
    r"lest|thus|hence|ere": "'so that ... not', 'so'",
    r"nought|naught|aught": "'nothing', 'anything'",
    r"thrice|oft|awry|amiss": "'three times', 'often', 'wrong'",
    # Phrases for which the field has a term.
    r"anew": "'again', or a verb with re-: 'reopen', 'rewrite'",
    r"who(so)?ever|whomever|whosever": "who it is: 'the caller', 'a process that'",
    r"go(es)? on with|went on with": "'resume' or 'continue'",
    r"let(s|ting)? go of|(is|was|be) let go": "'close', 'release' or 'free'",
    r"to be had|cannot be had": "'available'",
    r"of its own accord": "'by itself' or 'without a request'",
    r"of late": "'recently'",
    r"for want of": "'because ... is missing'",
    r"by and by": "'later'",
    r"(came|comes?|becomes?) of (it|this|that|them)": "'the result'",
    r"great(est)?": "'large'",
    r"look(s|ed)? after": "'supervise'",
    r"once more": "'again'",
    r"(takes?|took) its leave": "'disconnects', 'ends'",
    r"sees? to it": "'ensures'",
    r"(comes?|came) to the disk": "'reaches the disk'",
    r"hears? of|heard of": "'is notified of', 'gets an event'",
}
# In Python, also these. ('changed-meanwhile' is an error's code, which programs know.)
PYTHON = HABITS | {
    r"(?<!-)meanwhile(?!:)": "'during ...', 'in between' or 'by then'",
    r"in the midst": "'during'",
    r"now and then": "'sometimes'",
}
# In pages, which are read from top to bottom, also these.
PAGES = HABITS | {
    r"all the same": "'anyway'",
    r"now and then": "'sometimes'",
    r"in the midst": "'during'",
    r"to and fro": "'back and forth'",
    r"speaks? of|spoke of": "'refers to'",
    r"(come|comes|came) to (its|their|an) end": "'end', 'finish'",
    r"(told|tells?) (from|apart)": "'distinguished', 'differs from'",
    r"go(es)? on|went on|gone on|going on": "'continue', 'resume'",
    r"for the sake of": "'for', 'because of'",
    r"with(out)? a word": "'silently'",
    r"whole or not at all": "'completely or not at all'",
    r"make(s)? (room|space) for": "'free space for'",
    r"brings? .{1,20} into being": "'creates'",
    r"of old|as ever|for ever": "'earlier', 'as before', 'always'",
    r"is well|are well": "'works'",
    r"turn(s|ed)? away": "'refuse'",
    r"takes? (its|their) (time|leave)": "'is slow', 'disconnects'",
    r"as a rule": "'usually'",
    r"there is no telling": "'it is not known'",
}


def habits(name: str, text: str, words: dict[str, str] = HABITS) -> list[str]:
    """Complain of each word that has a plainer one."""
    any_of, instead = _pattern("|".join(f"({word})" for word in map(_flat, words))), list(words.values())
    return [
        f"{name}:{line_of(text, match)}: says '{match[0]}': write {instead[(match.lastindex or 1) - 1]}"
        for match in any_of.finditer(text)
    ]


@cache
def _pattern(alternatives: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{alternatives})\b", re.IGNORECASE)


def _flat(word: str) -> str:
    """A pattern whose groups do not count."""
    return re.sub(r"\((?!\?)", "(?:", word)


def test_texts_have_no_refused_words() -> None:
    left_out = {Path(__file__).resolve(), GLOSSARY, ROOT / "CHANGELOG.md"}
    paths = sorted({*sources(), *repository_files("*.md", "*.toml", "systemd/*", "debian/*")} - left_out)
    assert len(paths) > 100
    complaints = []
    for path, text in texts(path for path in paths if path.suffix != ".sql"):
        complaints += habits(where(path), text, {".md": PAGES, ".py": PYTHON}.get(path.suffix, HABITS))
    assert complaints == []


@pytest.mark.parametrize(
    "bad",
    [
        "It is opened anew.",
        "Whoever comes first",
        "goes on with it",
        "lets go of the lock",
        "no loop device is to be had",
        "whatever becomes of it",
        "thus it ends",
        "the peer took its leave",
        "Python hears of it",
    ],
)
def test_a_habit_is_noticed(bad: str) -> None:
    assert len(habits("a.md", f"one\n{bad}\n")) == 1
    assert habits("a.md", "It is reopened; the holder is released, and greatly renewed.\n") == []


@pytest.mark.parametrize("bad", ["it goes on all right", "told from damage", "It speaks of data", "as ever"])
def test_a_habit_of_pages_is_noticed(bad: str) -> None:
    assert len(habits("a.md", f"one\n{bad}\n", PAGES)) == 1
    assert habits("a.md", bad) == []


@pytest.mark.parametrize(
    "bad", ["it was closed meanwhile", "now and then it fails", "a kill in the midst of it"]
)
def test_a_habit_of_python_is_noticed(bad: str) -> None:
    assert len(habits("a.py", f"one\n{bad}\n", PYTHON)) == 1
    assert habits("a.py", 'code = "changed-meanwhile"', PYTHON) == []
