"""Elicitation: which questions to put to a new user, and what the answers say of all others.

An answer is 0 or 1, such as whether a user likes an item. All functions take many users at once.
Shapes in the docstrings: `U` users, `I` questions. Models have an answer for each question in a
table of known users; a new user answers a few questions, and the others are predicted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pfljax.errors import UserError

# Added to counts of answers, so that no probability is 0 or 1.
_SMOOTHING = 1.0
# Weight of the prior of a question, in answers, for the item-based and the Beta model.
_PRIOR = 2.0


class Statistics(NamedTuple):
    """What known users say of questions.

    Attributes:
      prior: `[I]`, the probability of the answer 1.
      given: `[2, I, I]`, at `[a, i, j]` the probability of the answer `a` to question i of a user
        whose answer to question j is 1, less that of one whose answer is 0, as a log-ratio.
      similarity: `[I, I]`, the correlation of the answers to two questions; 0 on the diagonal.
    """

    prior: jax.Array
    given: jax.Array
    similarity: jax.Array


def statistics(answers: np.ndarray, known: np.ndarray) -> Statistics:
    """Returns the statistics of a table of answers.

    Args:
      answers: `[U, I]` of 0 and 1; entries that are not known may have any content.
      known: `[U, I]` bool.

    Raises:
      UserError: The table has no users or fewer than two questions.
    """
    if answers.ndim != 2 or answers.shape[0] < 1 or answers.shape[1] < 2:
        raise UserError("Elicitation needs known users and two questions or more.")
    ones = np.where(known, answers, 0).astype(np.float64)
    zeros = np.where(known, 1 - answers, 0).astype(np.float64)
    kinds = (zeros, ones)
    # counts[a][b][i, j]: users with the answer a to question i and b to question j
    counts = [[one.T @ other + _SMOOTHING for other in kinds] for one in kinds]
    total = known.sum(axis=0)
    prior = (ones.sum(axis=0) + _SMOOTHING) / (total + 2 * _SMOOTHING)
    of_one = [counts[a][1] / (counts[0][1] + counts[1][1]) for a in (0, 1)]
    of_zero = [counts[a][0] / (counts[0][0] + counts[1][0]) for a in (0, 1)]
    given = np.log(np.stack(of_one)) - np.log(np.stack(of_zero))
    (n00, n01), (n10, n11) = counts
    # The correlation of two answers that are 0 or 1, from their joint counts.
    margins = (n00 + n01) * (n10 + n11) * (n00 + n10) * (n01 + n11)
    similarity = (n11 * n00 - n10 * n01) / np.sqrt(margins)
    np.fill_diagonal(similarity, 0)
    for a in (0, 1):
        np.fill_diagonal(given[a], 0)
    return Statistics(*(jnp.asarray(x, jnp.float32) for x in (prior, given, similarity)))


# `(statistics, asked [U, I], answers [U, I]) -> [U, I]`, the probabilities of the answer 1.
Model = Callable[[Statistics, jax.Array, jax.Array], jax.Array]


def naive_bayes(found: Statistics, asked: jax.Array, answers: jax.Array) -> jax.Array:
    """Returns `[U, I]`, the probabilities of the answer 1 if answers are independent given it.

        logit p_j = logit prior_j + sum_{asked i} log P(a_i | y_j = 1) - log P(a_i | y_j = 0)

    Args:
      found: The statistics of known users.
      asked: `[U, I]` bool, the questions that a user has answered.
      answers: `[U, I]`, the answers; others than those asked are not read.
    """
    yes, no = asked & (answers > 0), asked & (answers <= 0)
    dtype = found.prior.dtype
    evidence = no.astype(dtype) @ found.given[0] + yes.astype(dtype) @ found.given[1]
    prior = jnp.log(found.prior) - jnp.log1p(-found.prior)
    return jax.nn.sigmoid(prior + evidence)


def item_based(found: Statistics, asked: jax.Array, answers: jax.Array) -> jax.Array:
    """Returns `[U, I]`, probabilities by collaborative filtering between questions.

        p_j = prior_j + sum_{asked i} s_ij (a_i - prior_i) / (2 + sum_{asked i} |s_ij|), in [0, 1]

    Args:
      found: The statistics of known users; `s` are the similarities.
      asked: As for `naive_bayes`.
      answers: As for `naive_bayes`.
    """
    surprise = jnp.where(asked, answers - found.prior, 0)
    weight = asked.astype(found.prior.dtype) @ jnp.abs(found.similarity)
    moved = found.prior + surprise @ found.similarity / (_PRIOR + weight)
    return jnp.clip(moved, 0, 1)


def beta(found: Statistics, asked: jax.Array, answers: jax.Array) -> jax.Array:
    """Returns `[U, I]`, the means of Beta distributions whose counts grow with similar answers.

        p_j = (2 prior_j + sum_{asked i} |s_ij| b_ij) / (2 + sum_{asked i} |s_ij|)

    with `b_ij = a_i` for a positive similarity and `1 - a_i` for a negative one.

    Args:
      found: The statistics of known users; `s` are the similarities.
      asked: As for `naive_bayes`.
      answers: As for `naive_bayes`.
    """
    dtype = found.prior.dtype
    yes = jnp.where(asked, answers > 0, False).astype(dtype)
    no = jnp.where(asked, answers <= 0, False).astype(dtype)
    alike, opposite = jnp.maximum(found.similarity, 0), jnp.maximum(-found.similarity, 0)
    agreeing = yes @ alike + no @ opposite
    return (_PRIOR * found.prior + agreeing) / (_PRIOR + (yes + no) @ (alike + opposite))


MODELS: dict[str, Model] = {"naive_bayes": naive_bayes, "item_based": item_based, "beta": beta}


def entropy(probability: jax.Array) -> jax.Array:
    """Returns the entropy of answers in nats; 0 at 0 and 1."""
    p = jnp.clip(probability, 1e-7, 1 - 1e-7)
    return -(p * jnp.log(p) + (1 - p) * jnp.log1p(-p))


def random_question(
    model: Model, found: Statistics, asked: jax.Array, answers: jax.Array, key: jax.Array
) -> jax.Array:
    """Returns `[U, I]`, random scores of questions.

    Args:
      model: The model of answers; not used.
      found: The statistics of known users.
      asked: `[U, I]` bool, the questions that a user has answered.
      answers: `[U, I]`, the answers to these.
      key: Typed PRNG key.
    """
    return jax.random.uniform(key, asked.shape)


def uncertain_question(
    model: Model, found: Statistics, asked: jax.Array, answers: jax.Array, key: jax.Array
) -> jax.Array:
    """Returns `[U, I]`, the entropy of each answer; see `random_question` for the arguments."""
    return entropy(model(found, asked, answers))


def informative_question(
    model: Model, found: Statistics, asked: jax.Array, answers: jax.Array, key: jax.Array
) -> jax.Array:
    """Returns `[U, I]`, the information gain: the expected decrease of the entropy of all others.

        sum_{j not asked, j != i} H(p_j) - sum_a P(a_i = a) H(p_j | a_i = a)

    See `random_question` for the arguments. Questions are tried one after the other.
    """
    now = model(found, asked, answers)

    def gain(question):
        tried = asked.at[:, question].set(True)
        others = ~tried
        before = jnp.sum(jnp.where(others, entropy(now), 0), axis=1)
        after = 0.0
        for answer in (0.0, 1.0):
            likely = now[:, question] if answer else 1 - now[:, question]
            then = model(found, tried, answers.at[:, question].set(answer))
            after += likely * jnp.sum(jnp.where(others, entropy(then), 0), axis=1)
        return before - after

    return jax.lax.map(gain, jnp.arange(asked.shape[1])).T


# `(model, statistics, asked, answers, key) -> [U, I]`, of which the largest score is asked.
POLICIES: dict[str, Callable[..., jax.Array]] = {
    "random": random_question,
    "uncertain": uncertain_question,
    "information_gain": informative_question,
}


@functools.partial(jax.jit, static_argnames=("model", "policy", "questions"))
def accuracy_by_questions(
    found: Statistics,
    answers: jax.Array,
    known: jax.Array,
    tested: jax.Array,
    key: jax.Array,
    *,
    model: str,
    policy: str,
    questions: int,
) -> jax.Array:
    """Returns `[questions + 1, U]`, the accuracy on tested answers after 0, 1, ... questions.

    A user is asked the question with the largest score of the policy, of those whose answer is
    known and that are not tested; a user without any further one is asked none. A probability of
    one half counts half.

    Args:
      found: The statistics of other users.
      answers: `[U, I]` of 0 and 1.
      known: `[U, I]` bool.
      tested: `[U, I]` bool, the answers that are predicted and never asked.
      key: Typed PRNG key.
      model: A key of `MODELS`.
      policy: A key of `POLICIES`.
      questions: Number of questions.

    Returns:
      Accuracies; NaN for a user without a tested answer.
    """
    answers = jnp.where(known, answers, 0).astype(found.prior.dtype)
    tested = tested & known
    predict = MODELS[model]

    def score(asked):
        probability = predict(found, asked, answers)
        right = (probability > 0.5) == (answers > 0)
        right = jnp.where(probability == 0.5, 0.5, right)
        count = jnp.sum(tested, axis=1)
        mean = jnp.sum(jnp.where(tested, right, 0), axis=1) / jnp.maximum(count, 1)
        return jnp.where(count > 0, mean, jnp.nan)

    def ask(asked, key):
        visible = jnp.where(asked, answers, 0)
        scores = POLICIES[policy](predict, found, asked, visible, key)
        open_questions = known & ~tested & ~asked
        best = jnp.argmax(jnp.where(open_questions, scores, -jnp.inf), axis=1)
        rows = jnp.arange(len(asked))
        asked = asked.at[rows, best].set(asked[rows, best] | open_questions[rows, best])
        return asked, score(asked)

    none = jnp.zeros(known.shape, bool)
    _, scores = jax.lax.scan(ask, none, jax.random.split(key, questions))
    return jnp.concatenate([score(none)[None], scores])
