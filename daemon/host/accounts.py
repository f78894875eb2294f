"""Accounts: users and groups of this host by name; by number where they have none."""

import grp
import pwd


def user_name(number: int) -> str:
    """The name of a user."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def group_name(number: int) -> str:
    """The name of a group."""
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
