"""Errors that the user can correct."""


class UserError(Exception):
    """A user error, with a one-line message that says what to do.

    The commands print it without a stack trace and exit with status 2.
    """


class DivergedError(UserError):
    """A run diverged: a state or loss is not finite; other runs may continue."""
