"""Readers of published files of preferences: PersonalLLM, PersonaFeedback and FSPO.

They return texts; `examples` makes a pool of them with features of yours.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pfljax.data import reading
from pfljax.data.examples import Examples
from pfljax.data.sources import files
from pfljax.data.sources.scale import mean_and_std
from pfljax.data.sources.simulated_preferences import dirichlet_users, draw_pairs, standardized
from pfljax.errors import UserError

_TIERS = ("specific_easy", "specific_mid", "specific_hard")
_TIERS += ("general_easy", "general_mid", "general_hard")


class Preference(NamedTuple):
    """A preference of a user between two answers.

    Attributes:
      user: The name of the user.
      prompt: The text of the prompt.
      chosen: The text of the preferred answer.
      rejected: The text of the other answer.
    """

    user: str
    prompt: str
    chosen: str
    rejected: str


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a table: JSON lines, a JSON list, or CSV with a header.

    Args:
      path: The file, plain or compressed as .gz or .xz; a name that contains `.csv` is CSV.

    Raises:
      UserError: The file cannot be read, or a row is no object of columns.
    """
    text = files.read_text(path)
    try:
        if ".csv" in path.name:
            rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
        elif text.lstrip().startswith("["):
            rows = reading.parse_json(text)
        else:
            # Other characters that end a line in Unicode may be part of a text.
            lines = [line for line in text.split("\n") if line.strip()]
            rows = [reading.parse_json(line) for line in lines]
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is not a table of JSON lines or CSV: check the file.") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} has no rows, or one that has no columns: check the file.")
    if long := [number for number, row in enumerate(rows, 1) if None in row]:
        # A comma in a text without quotes would cut the text off.
        raise UserError(
            f"{path} has more cells than columns in row {long[0]}: put quotes around texts that "
            "contain commas."
        )
    return rows


def cells(path: Path, row: Mapping[str, Any], *columns: str) -> list[str]:
    """Returns the cells of a row as texts.

    Args:
      path: The file, for error messages.
      row: A row of `read_rows`.
      *columns: The names of the columns, each of which the row must have.

    Raises:
      UserError: A cell is missing or empty.
    """
    missing = [column for column in columns if row.get(column) in (None, "")]
    if missing:
        raise UserError(f"{path} has a row without {missing[0]}; each needs {', '.join(columns)}.")
    return [str(row[column]) for column in columns]


def read_fspo(path: Path) -> list[Preference]:
    """Returns the preferences in a file of FSPO.

    The columns are those of the ELIX and review data, `scorer_level` (the user), `prompt`,
    `response_x`, `response_y` and `label` (0 if `response_x` is preferred, otherwise 1); or those
    of the roleplay data, `level` (the user), `x`, `yw` and `yl`.

    Raises:
      UserError: The file cannot be read, or lacks a column.

    References:
      Singh et al., "FSPO: Few-Shot Preference Optimization of Synthetic Preference Data in LLMs
      Elicits Effective Personalization to Real Users", 2025, https://arxiv.org/abs/2502.19312.
    """
    rows = read_rows(path)
    if "yw" in rows[0]:
        return [Preference(*cells(path, row, "level", "x", "yw", "yl")) for row in rows]
    found = []
    for number, row in enumerate(rows):
        columns = ("scorer_level", "prompt", "response_x", "response_y", "label")
        user, prompt, first, second, label = cells(path, row, *columns)
        if label not in ("0", "1"):
            raise UserError(f"{path} has the label {label!r} in row {number}, which is not 0 or 1.")
        chosen, rejected = (first, second) if label == "0" else (second, first)
        found.append(Preference(user, prompt, chosen, rejected))
    return found


def read_persona_feedback(directory: Path) -> dict[str, list[Preference]]:
    """Returns the preferences of PersonaFeedback by tier, such as 'general_easy'.

    Args:
      directory: A directory with some of `specific_easy.jsonl`, `..._mid`, `..._hard` and
        `general_easy.jsonl`, `..._mid`, `..._hard`, whose rows have the columns `user_id`,
        `question`, `chosen`, and `reject` or `rejected`.

    Raises:
      UserError: There is no file, one cannot be read, or it lacks a column.

    References:
      Tao et al., "PersonaFeedback: A Large-scale Human-annotated Benchmark for Personalization",
      2025, https://arxiv.org/abs/2506.12915.
    """
    found = {}
    for tier in _TIERS:
        if paths := files.find([directory], [f"{tier}.jsonl"]):
            rows = read_rows(paths[0])
            other = "reject" if "reject" in rows[0] else "rejected"
            columns = ("user_id", "question", "chosen", other)
            found[tier] = [Preference(*cells(paths[0], row, *columns)) for row in rows]
    if not found:
        raise files.absent("persona_feedback", [directory], "put general_easy.jsonl and others")
    return found


class Scored(NamedTuple):
    """Answers with their rewards by several reward models.

    Attributes:
      prompts: `P` texts.
      answers: `P` lists of `K` texts.
      rewards: `[P, K, R]` float64, as in the file.
      names: `R` names of the reward models.
    """

    prompts: list[str]
    answers: list[list[str]]
    rewards: np.ndarray
    names: list[str]


def read_personal_llm(path: Path) -> Scored:
    """Returns the scored answers of PersonalLLM.

    Args:
      path: A table with the columns `prompt`, `response_1` to `response_K`, and for each answer
        and reward model `response_1_NAME`.

    Raises:
      UserError: The file cannot be read, a column is missing, or a reward is no number.

    References:
      Zollo, Siah, Ye, Li, Namkoong, "PersonalLLM: Tailoring LLMs to Individual Preferences", 2025,
      https://arxiv.org/abs/2409.20296.
    """
    rows = read_rows(path)
    count = 0
    while f"response_{count + 1}" in rows[0]:
        count += 1
    of_first = [re.fullmatch(r"response_1_(.+)", column) for column in rows[0]]
    # The column of the language model that wrote an answer is no reward.
    names = sorted(match[1] for match in of_first if match and match[1] != "model")
    if count < 2 or not names:
        raise UserError(
            f"{path} needs the columns response_1, response_2 and so on, and response_1_NAME for "
            "each reward model."
        )
    columns = [f"response_{1 + k}" for k in range(count)]
    try:
        rewards = [
            [[float(row[f"{column}_{name}"]) for name in names] for column in columns]
            for row in rows
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} has a reward that is missing or no number ({error}): check the file."
        ) from error
    found = np.array(rewards)
    if not np.isfinite(found).all():
        raise UserError(f"{path} has a reward that is not finite: check the file.")
    texts = [cells(path, row, "prompt", *columns) for row in rows]
    return Scored([text[0] for text in texts], [text[1:] for text in texts], found, names)


def simulated_users(
    scored: Scored, *, users: int, pairs: int, alpha: float = 0.1, seed: int = 0
) -> Iterator[Preference]:
    """Yields preferences of users who weigh the standardized rewards of scored answers.

    Args:
      scored: The answers, of `read_personal_llm`.
      users: Number of users.
      pairs: Number of pairs of each user.
      alpha: Concentration of the users' weights, see `dirichlet_users`.
      seed: The seed of all random numbers.
    """
    weights = dirichlet_users(users, len(scored.names), alpha, seed)
    drawn = draw_pairs(standardized(scored.rewards), weights, pairs, 0.0, seed + 1)
    for user, prompt, chosen, rejected in zip(*drawn.values(), strict=True):
        answers = scored.answers[prompt]
        yield Preference(str(user), scored.prompts[prompt], answers[chosen], answers[rejected])


def examples(
    preferences: Iterable[Preference], embed: Callable[[Sequence[str]], np.ndarray], name: str
) -> Examples:
    """Returns a pool of pairs with features of the answers' texts.

    Args:
      preferences: The preferences of all users.
      embed: `texts -> [n, d]`, the features of texts; it is called once for all different answers.
      name: The name of the data set in reports.

    Returns:
      Examples for a preference: inputs `[n, 2, d]` float32, the preferred answer first, owned by
      the users in sorted order.

    Raises:
      UserError: There is no preference.

    Example:
      >>> pairs = [Preference("ann", "Why?", "Because.", "I do not know.")]
      >>> examples(pairs, lambda texts: np.array([[len(text)] for text in texts]), "toy").inputs
      array([[[ 8.],
              [14.]]], dtype=float32)
    """
    pairs = list(preferences)
    if not pairs:
        raise UserError(f"The data set {name} has no preferences; read a file that has some.")
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.chosen, pair.rejected)))
    index = {text: number for number, text in enumerate(texts)}
    features = np.asarray(embed(texts), np.float32)
    both = [[index[pair.chosen], index[pair.rejected]] for pair in pairs]
    inputs = features[np.array(both)]
    mean, std = mean_and_std(inputs)
    owners = np.unique([pair.user for pair in pairs], return_inverse=True)[1].astype(np.int32)
    targets = np.zeros(len(pairs), np.int32)
    about = {"mean": mean, "std": std, "task": "preference", "owners": owners}
    return Examples(name=name, inputs=inputs, targets=targets, num_classes=0, **about)
