"""Losses of preferences by hand, their gradients by finite differences, and recorded scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trajectories

from pfljax.ops import preference

MARGINS = np.array([-3.0, -0.4, 0.0, 0.7, 5.0])
SIGMOID = 1 / (1 + np.exp(-0.5 * MARGINS))
BY_HAND = {
    "bradley_terry": -np.log(1 / (1 + np.exp(-MARGINS))),
    "dpo": -np.log(SIGMOID),
    "cdpo": -0.8 * np.log(SIGMOID) - 0.2 * np.log(1 - SIGMOID),
    "ipo": (MARGINS - 1) ** 2,
}


@pytest.mark.parametrize("name", preference.LOSSES)
def test_values_and_slopes(name):
    with jax.enable_x64(True):

        def loss(margins):
            return preference.LOSSES[name](margins, 0.5, 0.2)

        np.testing.assert_allclose(loss(jnp.array(MARGINS)), BY_HAND[name], rtol=1e-12)
        slopes = jax.grad(lambda margins: loss(margins).sum())(jnp.array(MARGINS))
        step = 1e-6
        numeric = (np.asarray(loss(MARGINS + step)) - np.asarray(loss(MARGINS - step))) / (2 * step)
        np.testing.assert_allclose(slopes, numeric, rtol=1e-8, atol=1e-9)


def test_limits():
    margins = jnp.array(MARGINS)
    np.testing.assert_allclose(
        preference.cdpo(margins, 0.5, 0.0), preference.dpo(margins, 0.5), rtol=1e-6
    )
    np.testing.assert_allclose(preference.dpo(margins, 1.0), preference.bradley_terry(margins))
    # Half of the labels wrong: no preference is best.
    assert np.argmin(preference.cdpo(margins, 1.0, 0.5)) == 2
    # The conservative minimum, and IPO's, are at finite margins.
    best = np.log(0.8 / 0.2) / 0.5
    slope = jax.grad(lambda m: preference.cdpo(m, 0.5, 0.2))
    np.testing.assert_allclose(slope(jnp.float32(best)), 0, atol=1e-6)
    assert jax.grad(lambda m: preference.ipo(m, 0.5))(jnp.float32(1.0)) == 0
    for name in preference.LOSSES:
        far = preference.LOSSES[name](jnp.array([-1e4, 1e4]), 1.0, 0.1)
        assert np.isfinite(far).all(), name


def policies():
    draw = np.random.default_rng(0)
    ours, theirs = np.log(draw.uniform(0.05, 0.9, (2, 3, 4)))
    advantages = draw.normal(size=(3, 4))
    edited = np.repeat([[False], [True], [True]], 4, axis=1)
    mask = np.arange(4) < np.array([[4], [3], [2]])
    return ours, theirs, advantages, edited, mask


def plain_policy_loss(ours, theirs, advantages, edited, mask, clip, edited_clip):
    """The mean over tokens in a loop."""
    total = []
    for index in map(tuple, np.argwhere(mask)):
        p, q, a, off = np.exp(ours[index]), np.exp(theirs[index]), advantages[index], edited[index]
        ratio = p / (q + 1e-6) if off else p / q
        width = edited_clip if off else clip
        total.append(-min(ratio * a, min(max(ratio, 1 - width), 1 + width) * a))
    return np.mean(total)


@pytest.mark.parametrize("edited_clip", [np.inf, 0.3])
def test_on_and_off_policy_loss(edited_clip):
    with jax.enable_x64(True):
        given = policies()

        def loss(ours):
            return preference.on_and_off_policy(ours, *given[1:], clip=0.2, edited_clip=edited_clip)

        ours = jnp.array(given[0])
        wanted = plain_policy_loss(*given, 0.2, edited_clip)
        np.testing.assert_allclose(loss(ours), wanted, rtol=1e-12)
        slope = jax.grad(loss)(ours)
        for index in np.ndindex(ours.shape):
            shift = np.zeros(ours.shape)
            shift[index] = 1e-6
            numeric = (loss(ours + shift) - loss(ours - shift)) / 2e-6
            np.testing.assert_allclose(slope[index], numeric, rtol=1e-5, atol=1e-9)
        assert not np.asarray(slope)[~given[-1]].any()


def test_on_policy_alone_has_the_policy_gradient_at_the_old_policy():
    ours, _, advantages, _, mask = policies()
    none = np.zeros_like(mask)

    def loss(ours, behaviour):
        return preference.on_and_off_policy(ours, behaviour, advantages, none, mask)

    slope = jax.grad(loss)(jnp.array(ours), jnp.array(ours))
    np.testing.assert_allclose(slope, -advantages * mask / mask.sum(), rtol=1e-5)
    # The policy that wrote the tokens is constant, and padding of any content does not count.
    assert not np.asarray(jax.grad(loss, 1)(jnp.array(ours), jnp.array(ours))).any()
    hostile = jnp.where(mask, ours, 1e4)
    np.testing.assert_allclose(jax.grad(loss)(hostile, jnp.array(ours)), slope)


def test_a_token_that_the_editor_never_writes_has_a_finite_ratio():
    one = jnp.ones((1,))
    loss, slope = jax.value_and_grad(preference.on_and_off_policy)(
        -1.0 * one, -1e3 * one, one, one > 0, one > 0
    )
    np.testing.assert_allclose(loss, -np.exp(-1) / 1e-6, rtol=1e-5)
    assert np.isfinite(slope).all()


def test_scores_of_recorded_clients():
    """Clipped scores, noisy total and pairs of the set `POPri` (float64)."""
    recorded = trajectories.read_recent("POPri.f64")
    with jax.enable_x64(True):
        answers, sent = recorded["embeddings/samples"], []
        for client in range(4):
            own = recorded[f"embeddings/client{client}"]
            found = preference.similarity_scores(answers, jnp.array(own), np.ones(len(own), bool))
            np.testing.assert_allclose(found, recorded[f"client{client}/clipped"], rtol=1e-8)
            sent.append(found)
        silent = preference.noisy_sum(jnp.stack(sent), 0.0, jax.random.key(0))
        total = silent + recorded["tape/noise"]
        np.testing.assert_allclose(total, recorded["total"], rtol=1e-8)
        pairs = preference.ranked_pairs(total, 1, 4)
        np.testing.assert_array_equal(pairs.chosen, recorded["chosen"])
        np.testing.assert_array_equal(pairs.rejected, recorded["rejected"])


def test_scores_have_sensitivity_one():
    draw = np.random.default_rng(1)
    answers, own = draw.normal(size=(5, 6, 8)), draw.normal(size=(7, 8))
    mask = np.arange(7) < 4
    scores = preference.similarity_scores(answers, own, mask)
    np.testing.assert_allclose(np.linalg.norm(scores), 1, rtol=1e-5)

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    plain = (unit(answers) @ unit(own[:4]).T).sum(axis=-1)
    plain = (plain - plain.mean()) / plain.std()
    np.testing.assert_allclose(scores, plain / np.linalg.norm(plain), rtol=1e-4, atol=1e-6)
    hostile = np.where(mask[:, None], own, np.nan)
    np.testing.assert_allclose(preference.similarity_scores(answers, hostile, mask), scores)
    # Equal answers, and a client without examples, have no preference.
    equal = np.broadcast_to(answers[:1, :1], answers.shape)
    assert not np.asarray(preference.similarity_scores(equal, own, mask)).any()
    assert not np.asarray(preference.similarity_scores(answers, own, mask & False)).any()
    slope = jax.grad(lambda x: preference.similarity_scores(x, own, mask)[0, 0])(jnp.array(equal))
    assert np.isfinite(slope).all()


def test_the_noise_has_the_given_deviation():
    zeros = jnp.zeros((3, 40, 50))
    noise = preference.noisy_sum(zeros, 2.0, jax.random.key(1))
    np.testing.assert_allclose(noise.std(), 2.0, rtol=0.05)
    ones = preference.noisy_sum(zeros + 1, 2.0, jax.random.key(1))
    np.testing.assert_allclose(ones - noise, 3.0, rtol=1e-5)


def test_pairs_by_rank():
    scores = jnp.array([[0.1, 0.9, 0.5], [2.0, 2.0, 1.0]])
    pairs = preference.ranked_pairs(scores, 1, 3)
    assert pairs.chosen.tolist() == [1, 0] and pairs.rejected.tolist() == [0, 2]
    assert preference.ranked_pairs(scores, 2, 3).chosen.tolist() == [2, 1]
