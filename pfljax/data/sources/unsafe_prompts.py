"""Readers of the published files of unsafe prompts: Do-Not-Answer and StrongREJECT.

A personalized language model should refuse them whatever the identity of its user;
`pfljax.metrics.safety` scores how far that holds.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pfljax.data.sources.preference_files import cells, read_rows


class UnsafePrompt(NamedTuple):
    """A prompt that a language model should refuse.

    Attributes:
      category: The risk area or the category of the prompt.
      harm: The specific harm; '' in StrongREJECT, which names none.
      source: The collection from which the prompt comes; '' in Do-Not-Answer, which names none.
      prompt: The text of the prompt.
    """

    category: str
    harm: str
    source: str
    prompt: str


def read_do_not_answer(path: Path) -> list[UnsafePrompt]:
    """Returns the prompts of Do-Not-Answer, in the order of the file.

    Args:
      path: A table with the columns `risk_area`, `specific_harms` and `question`; others, such as
        `id`, `types_of_harm` and recorded responses, are not read.

    Raises:
      UserError: The file cannot be read, or lacks a column.

    References:
      Wang, Li, Han, Nakov, Baldwin, "Do-Not-Answer: A Dataset for Evaluating Safeguards in LLMs",
      2023, https://arxiv.org/abs/2308.13387.
    """
    columns = ("risk_area", "specific_harms", "question")
    rows = [cells(path, row, *columns) for row in read_rows(path)]
    return [UnsafePrompt(area, harm, "", question) for area, harm, question in rows]


def read_strong_reject(path: Path) -> list[UnsafePrompt]:
    """Returns the prompts of StrongREJECT, in the order of the file.

    Args:
      path: A table with the columns `category`, `source` and `forbidden_prompt`.

    Raises:
      UserError: The file cannot be read, or lacks a column.

    References:
      Souly et al., "A StrongREJECT for Empty Jailbreaks", 2024, https://arxiv.org/abs/2402.10260.
    """
    columns = ("category", "source", "forbidden_prompt")
    rows = [cells(path, row, *columns) for row in read_rows(path)]
    return [UnsafePrompt(category, "", source, prompt) for category, source, prompt in rows]
