"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake of the user's, told in one sentence that says what to do.

    The binaries print it without a stack trace and exit with status 2.
    """


class DivergedError(UserError):
    """A run whose states or losses are not finite any more; other runs may go on."""
