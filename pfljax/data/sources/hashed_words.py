"""Words of texts as numbers, by hashing: what sources with texts have in place of an encoder."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np

_WORD = re.compile(r"\w+")


def count_hashed_words(texts: Sequence[str], words: int) -> np.ndarray:
    """Returns `[n, words]` float32, how often each word occurs, words hashed into numbers."""
    counts = np.zeros((len(texts), words), np.float32)
    for row, text in enumerate(texts):
        for number in hash_words(text, words):
            counts[row, number] += 1
    return counts


def hash_words(text: str, words: int) -> list[int]:
    """Returns the words of a text as numbers below `words`, equal ones in every process."""
    return [zlib.crc32(word.encode()) % words for word in _WORD.findall(text.lower())]
