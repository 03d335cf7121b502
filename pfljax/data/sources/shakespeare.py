"""Shakespeare's plays: next-character prediction; the speaking roles are the clients."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from pfljax.data import checks
from pfljax.data.examples import Examples
from pfljax.data.sources import files
from pfljax.data.sources.leaf import find_leaf, read_leaf
from pfljax.errors import UserError

_FILE = "input.txt"
_PADDING = 0


def load_shakespeare(data_dir: str = "", *, length: int = 80) -> Examples:
    """Returns the text of each role, split into consecutive windows without overlap.

    Args:
      data_dir: A directory with `input.txt` of Tiny Shakespeare, or LEAF's JSON files in
        `all_data`, or with a directory `shakespeare` of them.
      length: Number of characters of a window, `T`.

    Returns:
      Examples for next_token: inputs `[n, T]` int32 ids, targets `[n, T]` int32, the ids one
      character later. 0 pads the last window of a role; characters are numbered from 1 in the
      order of their code points. Each role's windows are in the order of the plays.

    Raises:
      UserError: The files are missing or damaged.
    """
    checks.whole("data.options.shakespeare.length", length, 1, 100_000)
    searched = files.directories(data_dir, ("shakespeare",))
    if paths := files.find(searched, [_FILE]):
        speeches = speeches_by_role(files.read_text(paths[0]))
    elif paths := find_leaf(searched):
        speeches = _leaf_texts(paths)
    else:
        raise files.absent(
            "shakespeare",
            searched,
            f"set data.dir to a directory with Tiny Shakespeare's {_FILE}, or the directory "
            "all_data written by LEAF's preprocessing of shakespeare",
        )
    ids = {character: number for number, character in enumerate(_alphabet(speeches), 1)}
    inputs, targets, owners = [], [], []
    for role, text in enumerate(speeches.values()):
        codes = np.array([ids[character] for character in text], np.int32)
        windows = -(-(len(codes) - 1) // length)
        if windows < 1:
            continue
        padded = np.full(windows * length + 1, _PADDING, np.int32)
        padded[: len(codes)] = codes
        inputs.append(padded[:-1].reshape(windows, length))
        targets.append(padded[1:].reshape(windows, length))
        owners.append(np.full(windows, role, np.int32))
    if not inputs:
        raise UserError(
            f"{paths[0]} has no speech of at least two characters: {files.FETCH_AGAIN}."
        )
    size = len(ids) + 1
    return Examples(
        name="shakespeare",
        inputs=np.concatenate(inputs),
        targets=np.concatenate(targets),
        num_classes=size,
        task="next_token",
        owners=np.concatenate(owners),
        time_gap=0,
        vocabulary=(size,),
    )


def speeches_by_role(text: str) -> dict[str, str]:
    """Returns the text of each role, from blocks of a line `ROLE:` and a speech.

    Args:
      text: The blocks, separated by blank lines.

    Returns:
      `{role: speeches, each ending in a newline}`, roles in the order of their first speech.

    >>> speeches_by_role("All:\\nSpeak, speak.\\n\\nNurse:\\nHow now?\\n\\nAll:\\nResolved.\\n")
    {'All': 'Speak, speak.\\nResolved.\\n', 'Nurse': 'How now?\\n'}
    """
    speeches: dict[str, list[str]] = {}
    for block in re.split(r"\n\s*\n", text.strip()):
        role, separator, speech = block.partition(":\n")
        if separator:
            speeches.setdefault(role, []).append(f"{speech}\n")
    return {role: "".join(parts) for role, parts in speeches.items()}


def _leaf_texts(paths) -> dict[str, str]:
    """Joins LEAF's windows, which start at every character, to the text of each role."""
    texts: dict[str, str] = {}
    for path, user, windows, following in read_leaf(paths):
        if not all(isinstance(text, str) for text in (*windows, *following)):
            raise UserError(
                f"{path} has windows of {user} that are not texts: run LEAF's preprocessing of "
                "shakespeare again."
            )
        if windows:
            # The targets are the text itself, from the end of the first window on.
            texts[user] = texts.get(user, "") + windows[0] + "".join(following)
    return texts


def _alphabet(speeches: Mapping[str, str]) -> list[str]:
    return sorted(set().union(*speeches.values()))
