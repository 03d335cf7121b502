"""Models of answers and policies of questions, against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax.errors import UserError
from pfljax.metrics import elicitation

DRAW = np.random.default_rng(0)
# Two kinds of users, who answer most questions in opposite ways.
KIND = DRAW.integers(0, 2, 60)
TYPICAL = DRAW.integers(0, 2, (2, 7))
TABLE = np.where(DRAW.uniform(size=(60, 7)) < 0.85, TYPICAL[KIND], 1 - TYPICAL[KIND])
KNOWN = DRAW.uniform(size=(60, 7)) < 0.8
FOUND = elicitation.statistics(TABLE, KNOWN)
ASKED = DRAW.uniform(size=(5, 7)) < 0.4
ANSWERS = DRAW.integers(0, 2, (5, 7))


def conditional(a, i, b, j):
    """P(answer a to i | answer b to j) with one more user of each kind."""
    both = KNOWN[:, i] & KNOWN[:, j] & (TABLE[:, j] == b)
    return (np.sum(both & (TABLE[:, i] == a)) + 1) / (both.sum() + 2)


def test_statistics():
    for i in range(7):
        ones = np.sum(KNOWN[:, i] & (TABLE[:, i] == 1))
        np.testing.assert_allclose(FOUND.prior[i], (ones + 1) / (KNOWN[:, i].sum() + 2), rtol=1e-5)
    hidden = np.where(KNOWN, TABLE, 77)
    again = elicitation.statistics(hidden, KNOWN)
    jax.tree.map(np.testing.assert_array_equal, again, FOUND)
    both = KNOWN[:, 0] & KNOWN[:, 1]
    pairs = [*zip(TABLE[both, 0], TABLE[both, 1], strict=True), (0, 0), (0, 1), (1, 0), (1, 1)]
    correlation = np.corrcoef(np.array(pairs).T)[0, 1]
    np.testing.assert_allclose(FOUND.similarity[0, 1], correlation, rtol=1e-4)
    np.testing.assert_allclose(FOUND.similarity, FOUND.similarity.T, atol=1e-6)
    with pytest.raises(UserError, match="two questions or more"):
        elicitation.statistics(TABLE[:, :1], KNOWN[:, :1])


def plain(name, asked, answers):
    prior, similarity = np.asarray(FOUND.prior, float), np.asarray(FOUND.similarity, float)
    found = np.zeros((5, 7))
    for u in range(5):
        own = np.flatnonzero(asked[u])
        for j in range(7):
            others = own[own != j]
            s = np.abs(similarity[others, j])
            if name == "naive_bayes":
                odds = prior[j] / (1 - prior[j])
                for i in others:
                    a = answers[u, i]
                    odds *= conditional(a, i, 1, j) / conditional(a, i, 0, j)
                found[u, j] = odds / (1 + odds)
            elif name == "item_based":
                pull = sum(similarity[i, j] * (answers[u, i] - prior[i]) for i in others)
                found[u, j] = np.clip(prior[j] + pull / (2 + s.sum()), 0, 1)
            else:
                said = [
                    a if similarity[i, j] > 0 else 1 - a
                    for i, a in zip(others, answers[u, others], strict=True)
                ]
                found[u, j] = (2 * prior[j] + np.sum(s * said)) / (2 + s.sum())
    return found


@pytest.mark.parametrize("name", elicitation.MODELS)
def test_models(name):
    found = elicitation.MODELS[name](FOUND, jnp.array(ASKED), jnp.array(ANSWERS))
    np.testing.assert_allclose(found, plain(name, ASKED, ANSWERS), rtol=1e-4, atol=1e-6)
    none = elicitation.MODELS[name](FOUND, jnp.zeros((5, 7), bool), jnp.array(ANSWERS))
    np.testing.assert_allclose(none, np.tile(FOUND.prior, (5, 1)), rtol=1e-5)
    # Answers to questions that were not asked are not read.
    hidden = np.where(ASKED, ANSWERS, 1 - ANSWERS)
    np.testing.assert_array_equal(
        elicitation.MODELS[name](FOUND, jnp.array(ASKED), jnp.array(hidden)), found
    )


def test_the_information_gain_is_the_expected_decrease_of_entropy():
    model = elicitation.naive_bayes
    answers = np.where(ASKED, ANSWERS, 0).astype(float)
    found = elicitation.informative_question(
        model, FOUND, jnp.array(ASKED), jnp.array(answers), jax.random.key(0)
    )

    def h(p):
        return -(p * np.log(p) + (1 - p) * np.log(1 - p))

    now = plain("naive_bayes", ASKED, ANSWERS)
    for u in range(5):
        for i in np.flatnonzero(~ASKED[u]):
            others = [j for j in range(7) if not ASKED[u, j] and j != i]
            gain = h(now[u, others]).sum()
            for a in (0, 1):
                tried, said = ASKED.copy(), ANSWERS.copy()
                tried[u, i], said[u, i] = True, a
                then = plain("naive_bayes", tried, said)[u, others]
                gain -= (now[u, i] if a else 1 - now[u, i]) * h(then).sum()
            np.testing.assert_allclose(found[u, i], gain, rtol=1e-3, atol=1e-5)
    uncertain = elicitation.uncertain_question(model, FOUND, jnp.array(ASKED), answers, None)
    np.testing.assert_allclose(uncertain, h(now), rtol=1e-3)
    assert np.isfinite(elicitation.entropy(jnp.array([0.0, 1.0]))).all()


def test_questions_are_known_not_tested_and_asked_once():
    known = np.array([[1, 1, 1, 1, 0, 0, 1], [1, 1, 1, 0, 0, 0, 0]], bool)
    tested = np.array([[1, 1, 0, 0, 1, 1, 0], [0, 1, 0, 0, 0, 0, 0]], bool)
    found = elicitation.accuracy_by_questions(
        FOUND, jnp.array(TABLE[:2]), known, tested, jax.random.key(0),
        model="naive_bayes", policy="information_gain", questions=5,
    )  # fmt: skip
    assert found.shape == (6, 2) and np.isfinite(found).all()
    # The first user has three questions that may be asked, and the second one two.
    np.testing.assert_array_equal(found[3:, 0], found[3, 0])
    np.testing.assert_array_equal(found[2:, 1], found[2, 1])
    asked = known & ~tested
    last = np.asarray(elicitation.naive_bayes(FOUND, jnp.array(asked), jnp.array(TABLE[:2])))
    right = (last > 0.5) == (TABLE[:2] > 0)
    for u in range(2):
        np.testing.assert_allclose(found[-1, u], right[u, known[u] & tested[u]].mean())
    nothing = elicitation.accuracy_by_questions(
        FOUND, jnp.array(TABLE[:2]), known, known & False, jax.random.key(0),
        model="beta", policy="random", questions=1,
    )  # fmt: skip
    assert np.isnan(nothing).all()


@pytest.mark.parametrize("model", elicitation.MODELS)
def test_answers_help_and_informative_questions_most(model):
    draw = np.random.default_rng(5)
    kinds = draw.integers(0, 2, (2, 400))
    first = draw.integers(0, 2, 16)
    typical = np.stack([first, 1 - first])
    typical[1, :10] = first[:10]  # questions that say nothing of the kind of a user,
    noisy = np.where(draw.uniform(size=(2, 400, 16)) < 0.9, typical[kinds], 1 - typical[kinds])
    noisy[:, :, :5] = draw.integers(0, 2, (2, 400, 5))  # of which five are the most uncertain ones
    known, tested = np.ones((400, 16), bool), np.arange(16) >= 13
    found = elicitation.statistics(noisy[0], known)
    curves = {}
    for policy in elicitation.POLICIES:
        curve = elicitation.accuracy_by_questions(
            found, jnp.array(noisy[1]), known, known & tested, jax.random.key(1),
            model=model, policy=policy, questions=3,
        )  # fmt: skip
        curves[policy] = np.asarray(curve).mean(axis=1)
    assert curves["information_gain"][-1] > curves["information_gain"][0] + 0.1, curves
    assert curves["information_gain"][-1] > curves["random"][-1] + 0.05, curves
