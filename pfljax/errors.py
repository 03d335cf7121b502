"""Errors that the user can correct."""


class UserError(Exception):
    """A user error, with a one-line message that says what to do.

    The commands print it without a stack trace and exit with status 2.

    Example:
      >>> import pfljax
      >>> try:
      ...     pfljax.fit("dito", "digits")
      ... except pfljax.UserError as error:
      ...     print(str(error)[-21:])
      Did you mean 'ditto'?
    """


class DivergedError(UserError):
    """A run diverged: a state or loss is not finite; other runs may continue.

    Example:
      >>> import pfljax
      >>> try:
      ...     pfljax.fit("local", "digits", rounds=5, learning_rate=1e30)
      ... except pfljax.DivergedError as error:
      ...     print(str(error)[:15])
      local diverged:
    """
