"""Values of a config by key, and checks of single values."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable
from typing import Any

import ml_collections

from pfljax.errors import UserError

# Rounds, clients and batches are counted in 32 bits on the devices.
MOST = 2**31 - 1


def flat(config: ml_collections.ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Returns all keys of a config with their values, such as 'data.alpha'."""
    found = {}
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def at(config: ml_collections.ConfigDict, key: str) -> Any:
    """Returns the value of a nested key, such as 'data.alpha'."""
    return functools.reduce(lambda node, name: node[name], key.split("."), config)


def suggest(word: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the known word nearest to a mistyped one, or ''."""
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def require_known(what: str, word: str, known: Iterable[str]) -> None:
    """Raises a `UserError` with a suggestion if `word` is not among the `known` ones."""
    known = list(known)
    if word not in known:
        raise UserError(
            f"Unknown {what} {word!r}; known are {', '.join(known)}.{suggest(word, known)}"
        )


def require_whole(what: str, value: Any, least: int) -> None:
    """Raises a `UserError` if a value is not a whole number from `least` to `MOST`."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not least <= value <= MOST:
        raise UserError(f"{what} is {value!r}; it must be a whole number from {least} to {MOST}.")
