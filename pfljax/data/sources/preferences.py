"""Pairs of answers of which a person preferred one: PRISM and PersonaFeedback; users are clients.

The files are arrays: indices of users, questions and answers, texts, and features of the texts in
8 bits with a scale for each row. Texts are read for their lengths only.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from pfljax.data import checks, reading, validate_arrays
from pfljax.data.examples import Examples
from pfljax.data.sources import files
from pfljax.data.sources.scale import mean_and_std
from pfljax.errors import UserError

_PRISM, _PERSONA = ("prism_pairs",), ("persona_feedback",)
TIERS = ("easy", "mid", "hard")
FIRST, SECOND, TIE = range(3)


class Judgements(NamedTuple):
    """Recorded answers of judges to the question which of two answers a person prefers.

    Attributes:
      names: The names of the judges.
      judge: `[n]` int32, the index of the judge.
      pair: `[n]` int32, the index of the pair.
      user: `[n]` int32, the person of the pair; -1 where unknown.
      truth: `[n]` int32, what the person preferred, in the order shown: 0 the first answer, 1 the
        second one, 2 neither.
      correct: `[n]` bool, as recorded.
      certainty: `[n]` int32, from 1 to 100; -1 if the judge stated none.
    """

    names: tuple[str, ...]
    judge: np.ndarray
    pair: np.ndarray
    user: np.ndarray
    truth: np.ndarray
    correct: np.ndarray
    certainty: np.ndarray


class Pairs(NamedTuple):
    """Pairs of answers with what is known of them; features have the norm 1 approximately.

    Attributes:
      user: `[n]` int32, the person.
      question: `[n]` int32, the question.
      tier: `[n]` int32, the index in `TIERS`; zeros for a data set without tiers.
      length: `[n, 2]` int32, the numbers of characters, the preferred answer first.
      answer: `[n, 2, d]` float32, the features of the answers.
      own: `[n, 2]` float32, the cosine of an answer and the person's persona, to the rounding of
        the features; zeros without personas.
      mean: `[n, 2]` float32, the cosine of an answer and the mean of all personas.
    """

    user: np.ndarray
    question: np.ndarray
    tier: np.ndarray
    length: np.ndarray
    answer: np.ndarray
    own: np.ndarray
    mean: np.ndarray


def load_prism_pairs(
    data_dir: str = "", *, features: str = "both", answer_scale: float = 1.0
) -> Examples:
    """Returns 2,584 pairs of answers of language models, owned by the person who preferred one.

    Ties, and pairs of an unknown person, are left out.

    Args:
      data_dir: A directory with `prism_pairs.npz` and `features_wordllama.npz`, or with a directory
        `prism_pairs` of them.
      features: 'length' for the logarithm of the number of characters; 'answer' for 256 features of
        the answer's words; 'both' for the length and these.
      answer_scale: Factor on the standardized features of the answer, above 0, beside the other
        columns: with 1 each feature has the deviation 1, and with `1 / sqrt(d)` all `d` together
        have the norm of one other column.

    Returns:
      Examples for a preference: inputs `[n, 2, d]` float32, the preferred answer first.

    Raises:
      UserError: The files are missing or damaged, or an option is invalid.

    References:
      Kirk et al., "The PRISM Alignment Dataset", 2024, https://arxiv.org/abs/2404.16019.
      Dong, Hu, Collier, "Can LLM be a Personalized Judge?", 2024, https://arxiv.org/abs/2406.11657.
    """
    options = "data.options.prism_pairs"
    checks.choice(f"{options}.features", features, ("length", "answer", "both"))
    checks.number(f"{options}.answer_scale", answer_scale, 1e-6, 1e6)
    pairs = read_prism_pairs(data_dir)
    others = [] if features == "answer" else [_log(pairs.length)]
    answer = None if features == "length" else pairs.answer
    return _examples("prism_pairs", pairs, others, answer, answer_scale)


def load_persona_feedback(
    data_dir: str = "", *, tier: str = "all", features: str = "all", answer_scale: float = 1.0
) -> Examples:
    """Returns 3,841 pairs of answers, owned by the persona that one of them suits.

    Args:
      data_dir: A directory with `persona_feedback.npz` and `features_use.npz`, or with a directory
        `persona_feedback` of them.
      tier: 'easy', 'mid', 'hard', or 'all'.
      features: 'length' for the logarithm of the number of characters; 'persona' for the length and
        the cosines of the answer with the own and the mean persona; 'answer' for 512 features of
        the answer; 'all' for all of them.
      answer_scale: Factor on the standardized features of the answer, above 0, beside the other
        columns: with 1 each feature has the deviation 1, and with `1 / sqrt(d)` all `d` together
        have the norm of one other column.

    Returns:
      Examples for a preference: inputs `[n, 2, d]` float32, the suitable answer first.

    Raises:
      UserError: The files are missing or damaged, or an option is invalid.

    References:
      Tao et al., "PersonaFeedback: A Large-scale Human-annotated Benchmark for Personalization",
      2025, https://arxiv.org/abs/2506.12915.
    """
    options = "data.options.persona_feedback"
    checks.choice(f"{options}.tier", tier, (*TIERS, "all"))
    checks.choice(f"{options}.features", features, ("length", "persona", "answer", "all"))
    checks.number(f"{options}.answer_scale", answer_scale, 1e-6, 1e6)
    pairs = read_persona_feedback(data_dir)
    if tier != "all":
        pairs = Pairs(*(array[pairs.tier == TIERS.index(tier)] for array in pairs))
    persona = [_log(pairs.length), pairs.own[..., None], pairs.mean[..., None]]
    others = {"length": persona[:1], "answer": []}.get(features, persona)
    answer = pairs.answer if features in ("answer", "all") else None
    return _examples("persona_feedback", pairs, others, answer, answer_scale)


def read_prism_pairs(data_dir: str = "", *, known: bool = True) -> Pairs:
    """Returns PRISM's pairs without ties, as `load_prism_pairs` reads them.

    Args:
      data_dir: As for `load_prism_pairs`.
      known: Whether pairs of unknown persons are left out; otherwise their user is -1.
    """
    pool, features = _find(data_dir, _PRISM, "prism_pairs.npz", "features_wordllama.npz")
    keys = ("user", "question", "first", "second", "label", "answer_text", "answer_offsets")
    user, question, first, second, label, text, offsets = _arrays(pool, *keys)
    answers = _features(features, "answer", len(offsets) - 1)
    columns = user, question, label, first, second
    user, question, label, first, second = _indices(pool, columns, len(answers), least=-1)
    used = (label < TIE) & ((user >= 0) | (not known))
    swapped = label == SECOND
    both = np.stack([np.where(swapped, second, first), np.where(swapped, first, second)], axis=1)
    both = both[used]
    none = np.zeros(both.shape, np.float32)
    return Pairs(
        user=user[used],
        question=question[used],
        tier=np.zeros(len(both), np.int32),
        length=_lengths(pool, text, offsets)[both],
        answer=answers[both],
        own=none,
        mean=none,
    )


def read_persona_feedback(data_dir: str = "") -> Pairs:
    """Returns PersonaFeedback's pairs of all tiers; see `load_persona_feedback`."""
    pool, features = _find(data_dir, _PERSONA, "persona_feedback.npz", "features_use.npz")
    keys = ("user", "question", "tier", "chosen", "rejected", "answer_text", "answer_offsets")
    user, question, tier, chosen, rejected, text, offsets = _arrays(pool, *keys)
    answers = _features(features, "answer", len(offsets) - 1)
    columns = user, question, tier, chosen, rejected
    user, question, tier, chosen, rejected = _indices(pool, columns, len(answers))
    personas = _features(features, "persona", int(user.max()) + 1)
    both = np.stack([chosen, rejected], axis=1)
    mean = personas.mean(axis=0)
    return Pairs(
        user=user,
        question=question,
        tier=validate_arrays.whole(pool, tier, "tier", least=0, most=2, remedy=files.FETCH_AGAIN),
        length=_lengths(pool, text, offsets)[both],
        answer=answers[both],
        own=np.einsum("nkd,nd->nk", answers[both], personas[user]),
        mean=answers[both] @ (mean / max(np.linalg.norm(mean), 1e-9)),
    )


def read_judgements(data_dir: str = "") -> Judgements:
    """Returns the recorded judgements of PRISM's pairs by language models.

    Args:
      data_dir: A directory with `prism_pairs.npz`, `prism_judges.npz` and `codes.json`, or with a
        directory `prism_pairs` of them.

    Raises:
      UserError: The files are missing or damaged.
    """
    pool, judges, codes = _find(
        data_dir, _PRISM, "prism_pairs.npz", "prism_judges.npz", "codes.json"
    )
    (user,) = _arrays(pool, "user")
    keys = ("judge", "pair", "truth", "correct", "certainty")
    judge, pair, truth, correct, certainty = _arrays(judges, *keys)
    about = {"remedy": files.FETCH_AGAIN}
    pair = validate_arrays.whole(judges, pair, "pair", least=0, most=len(user) - 1, **about)
    return Judgements(
        **_judged(judges, codes, "judges", judge, correct, certainty),
        pair=pair,
        user=user.astype(np.int32)[pair],
        truth=validate_arrays.whole(judges, truth, "truth", least=0, most=2, **about),
    )


def read_other_judgements(data_dir: str = "") -> Judgements:
    """Returns the recorded judgements of two further tasks, without pairs, persons and truths.

    These are empathy (names that begin with `ec`) and author profiling (`ap`).

    Args:
      data_dir: A directory with `other_judges.npz` and `codes.json`, or with a directory
        `prism_pairs` of them.

    Raises:
      UserError: The files are missing or damaged.
    """
    path, codes = _find(data_dir, _PRISM, "other_judges.npz", "codes.json")
    run, correct, certainty = _arrays(path, "run", "correct", "certainty")
    unknown = np.full(len(run), -1, np.int32)
    return Judgements(
        **_judged(path, codes, "other_runs", run, correct, certainty),
        pair=unknown,
        user=unknown,
        truth=np.zeros_like(unknown),
    )


def _judged(path, codes, key, judge, correct, certainty) -> dict:
    """Returns the checked fields that all kinds of judgements have."""
    try:
        names = tuple(map(str, reading.parse_json(files.read_text(codes))[key]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{codes} has no list of judges ({key}): {files.FETCH_AGAIN}.") from error

    def whole(values, what, least, most):
        return validate_arrays.whole(
            path, values, what, least=least, most=most, remedy=files.FETCH_AGAIN
        )

    return {
        "names": names,
        "judge": whole(judge, "judge", 0, len(names) - 1),
        "correct": whole(correct, "mark of a correct judgement", 0, 1).astype(bool),
        "certainty": whole(certainty, "certainty", -1, 100),
    }


def _examples(
    name: str,
    pairs: Pairs,
    others: list[np.ndarray],
    answer: np.ndarray | None,
    answer_scale: float,
) -> Examples:
    """Returns the pool of some columns `[n, 2, ...]` of pairs, standardized in the program."""
    columns = others if answer is None else [*others, answer]
    inputs = np.concatenate(columns, axis=-1).astype(np.float32)
    mean, std = mean_and_std(inputs)
    std[len(others) :] /= answer_scale  # each of the others is one column
    return Examples(
        name=name,
        inputs=inputs,
        targets=np.zeros(len(inputs), np.int32),
        num_classes=0,
        mean=mean,
        std=std,
        task="preference",
        owners=pairs.user,
        item_of=pairs.question,
    )


def _find(data_dir: str, folders: tuple[str, ...], *names: str) -> list[Path]:
    searched = files.directories(data_dir, folders)
    if paths := files.find(searched, names):
        return paths
    raise files.absent(folders[0], searched, f"put {', '.join(names)} there")


def _arrays(path: Path, *keys: str) -> list[np.ndarray]:
    """Returns arrays of numbers in an `.npz` file; all that describe pairs have one length."""
    arrays = files.read_npz(path, *keys)
    rows = [array for key, array in zip(keys, arrays, strict=True) if "_" not in key]
    if any(array.dtype.kind not in "biuf" for array in arrays) or (
        len({array.shape[:1] for array in rows}) > 1 or any(array.ndim == 0 for array in arrays)
    ):
        raise UserError(
            f"{path} has arrays of different lengths, or without numbers: {files.FETCH_AGAIN}."
        )
    return arrays


def _indices(path: Path, columns: tuple[np.ndarray, ...], count: int, least: int = 0) -> list:
    """Returns columns of indices as int32; the last two are those of `count` answers."""
    about = {"remedy": files.FETCH_AGAIN}
    *others, one, other = columns
    checked = [
        validate_arrays.whole(path, column, "index", least=least, **about) for column in others
    ]
    for column in (one, other):
        checked.append(
            validate_arrays.whole(path, column, "answer", least=0, most=count - 1, **about)
        )
    if not len(one):
        raise UserError(f"{path} has no pairs: {files.FETCH_AGAIN}.")
    return checked


def _features(path: Path, key: str, count: int) -> np.ndarray:
    """Returns `[count, d]` float32, rows of 8 bits times their scales."""
    rows, scale = _arrays(path, key, f"{key}_scale")
    if rows.ndim != 2 or scale.shape != rows.shape[:1] or len(rows) < count:
        raise UserError(
            f"{path} has features of another number of texts than there are: {files.FETCH_AGAIN}."
        )
    validate_arrays.finite(path, scale, remedy=files.FETCH_AGAIN)
    return rows.astype(np.float32) * scale[:, None].astype(np.float32)


def _lengths(path: Path, text: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Returns `[texts]` int32, numbers of characters of texts in UTF-8, of their joined bytes."""
    ends = validate_arrays.whole(
        path, offsets, "offset", least=0, most=len(text), remedy=files.FETCH_AGAIN
    )
    if (np.diff(ends) < 0).any():
        raise UserError(f"{path} has offsets that decrease: {files.FETCH_AGAIN}.")
    # All bytes of a character but the first one begin with the bits 10.
    starts = np.concatenate([[0], np.cumsum((text.astype(np.uint8) & 0xC0) != 0x80)])
    return np.diff(starts[ends]).astype(np.int32)


def _log(length: np.ndarray) -> np.ndarray:
    return np.log1p(length.astype(np.float64))[..., None]
