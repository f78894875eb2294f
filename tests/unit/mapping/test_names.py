"""Names: which are allowed, and how others are made of them."""

import pytest
from hypothesis import given, strategies as st

from polyvol.mapping.errors import BadName
from polyvol.mapping.names import NAME_LENGTH_MAX, check_name, name_from, unique_name


@pytest.mark.parametrize("name", ["a", "demo", "0", "_x", "A.b-c_9", "x" * 64])
def test_good_names_are_allowed(name: str) -> None:
    assert check_name("volume", name) == name


@pytest.mark.parametrize(
    "name", ["", "a/b", "a@b", "a b", "-a", ".", "..", ".a", "a\n", "a\0", "\x1b[1m", "ü", "x" * 65, "a\r"]
)
def test_bad_names_are_refused_without_printing_them_raw(name: str) -> None:
    with pytest.raises(BadName) as refused:
        check_name("volume", name)
    assert str(refused.value).isprintable()


@given(st.text(), st.sets(st.text(max_size=70), max_size=4))
def test_a_made_name_is_always_allowed_and_free(text: str, taken: set[str]) -> None:
    name = unique_name(name_from(text, "device"), taken | {name_from(text, "device")})
    check_name("device", name)
    assert name not in taken
    assert len(name) <= NAME_LENGTH_MAX


def test_names_in_use_get_a_number() -> None:
    assert unique_name("a", {"a", "a-2"}) == "a-3"
    assert unique_name("b", {"a"}) == "b"
