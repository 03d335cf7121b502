"""Distributions of features: estimates, classifiers, and interpolations, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from pfljax.ops import gaussians, linear

DRAW = np.random.default_rng(1)
LABELS = np.array([0, 1, 0, 0, 1, 2, 1, 0, 9, 9]) % 4  # the last two are padding
MASK = np.arange(10) < 8
FEATURES = DRAW.normal(size=(10, 3)).astype(np.float32)
SAMPLE = gaussians.Sample(jnp.array(FEATURES), jnp.array(LABELS), jnp.array(MASK))
FACTOR = DRAW.normal(size=(3, 3)).astype(np.float32)
COMMON = gaussians.Gaussians(
    jnp.array(DRAW.normal(size=(4, 3)).astype(np.float32)), jnp.array(FACTOR @ FACTOR.T)
)
PRIORS = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))


def log_densities(z, found):
    """`log N(z; m_c, S)` up to the constant, with the covariance shrunk."""
    means, covariance = np.float64(found.means), np.float64(found.covariance)
    shrunk = (1 - 1e-4) * covariance + 1e-4 * np.trace(covariance) / 3 * np.eye(3)
    gaps = z[:, None] - means
    return -0.5 * np.einsum("ncd,de,nce->nc", gaps, np.linalg.inv(shrunk), gaps)


def test_an_estimate_leaves_padding_out_and_takes_known_means_for_rare_classes():
    poisoned = SAMPLE._replace(features=jnp.where(MASK[:, None], FEATURES, jnp.nan))
    found = gaussians.estimate(poisoned, COMMON, least_examples=3, ridge=0.5)
    z, y = FEATURES[:8], LABELS[:8]
    means = np.stack([z[y == 0].mean(axis=0), z[y == 1].mean(axis=0), *COMMON.means[2:]])
    gaps = z - means[y]
    np.testing.assert_allclose(found.means, means, rtol=1e-5)
    np.testing.assert_allclose(
        found.covariance, gaps.T @ gaps / 7 + 0.5 * np.eye(3), rtol=1e-4, atol=1e-5
    )


def test_an_empty_sample_has_the_known_means():
    found = gaussians.estimate(SAMPLE._replace(mask=jnp.zeros(10, bool)), COMMON, 3, 0.5)
    np.testing.assert_array_equal(found.means, COMMON.means)
    np.testing.assert_array_equal(found.covariance, 0.5 * np.eye(3, dtype=np.float32))


def test_folds_take_the_examples_of_a_class_in_turn():
    np.testing.assert_array_equal(SAMPLE.fold(4), [0, 0, 1, 0, 1, -1, 0, 1, -1, -1])


def test_a_classifier_has_the_posterior_probabilities():
    layer = gaussians.classifier(COMMON, PRIORS)
    found = jax.nn.log_softmax(linear.apply(layer, FEATURES))
    expected = jax.nn.log_softmax(log_densities(FEATURES, COMMON) + PRIORS)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_the_classifier_of_a_singular_covariance_is_finite():
    line = COMMON._replace(covariance=jnp.outer(FACTOR[0], FACTOR[0]))
    assert all(np.all(np.isfinite(leaf)) for leaf in gaussians.classifier(line, PRIORS).values())


def test_the_loss_of_an_interpolation_is_that_of_its_classifier():
    local = gaussians.estimate(SAMPLE, COMMON, 3, 0.5)
    white = gaussians.whitening(COMMON.covariance)
    losses = gaussians.interpolation(SAMPLE, local, COMMON, white, PRIORS)
    for weights in ((0.0, 0.0), (1.0, 1.0), (0.3, 0.8)):
        mixed = gaussians.interpolate(jnp.array(weights), local, COMMON)
        outputs = jax.nn.log_softmax(log_densities(FEATURES[:8], mixed) + PRIORS)
        expected = -outputs[np.arange(8), LABELS[:8]].mean()
        np.testing.assert_allclose(losses.loss(jnp.array(weights)), expected, rtol=1e-3)


def test_a_sample_without_folds_takes_the_common_distributions():
    alone = SAMPLE._replace(mask=jnp.arange(10) == 5)  # one example of class 2
    adapted = gaussians.adapt(alone, COMMON, PRIORS, 1, 0.5, single_weight=False)
    np.testing.assert_allclose(adapted.means, COMMON.means, rtol=1e-6)
    np.testing.assert_allclose(adapted.covariance, COMMON.covariance, rtol=1e-6)


def test_the_weight_has_the_least_loss_in_cross_validation():
    draw = np.random.default_rng(5)
    y, shift = np.tile([0, 1], 16), np.float32([0.9, 0.0, 0.0])
    z = (draw.normal(size=(32, 3)) + shift * y[:, None]).astype(np.float32)
    sample = gaussians.Sample(jnp.array(z), jnp.array(y), jnp.ones(32, bool))
    # The common means are shifted along another axis too.
    means = jnp.array([[0.0] * 3, shift + np.float32([0, 0.5, 0]), [3.0] * 3, [-3.0] * 3])
    common = gaussians.Gaussians(means, jnp.eye(3))
    adapted = gaussians.adapt(sample, common, PRIORS, 3, 0.5, single_weight=True)
    own = gaussians.estimate(sample, common, 3, 0.5)
    found = float(((adapted.means - common.means) / (own.means - common.means))[0, 0])

    fold, losses = np.asarray(sample.fold(4)), []
    estimates = [
        gaussians.estimate(sample._replace(mask=jnp.array(fold != k)), common, 3, 0.5)
        for k in (0, 1)
    ]
    for weight in (*np.linspace(0, 1, 101), found):
        loss = 0
        for k, local in enumerate(estimates):
            mixed = gaussians.interpolate(jnp.full(2, weight), local, common)
            outputs = jax.nn.log_softmax(log_densities(z[fold == k], mixed) + PRIORS)
            loss -= outputs[np.arange(16), y[fold == k]].mean()
        losses.append(float(loss))
    best = np.argmin(losses[:-1]) / 100
    assert 0.1 < best < 0.9 and abs(found - best) < 0.02
    assert losses[-1] < min(losses[:-1]) + 1e-4
    # With a weight for the covariance of its own, that of the means is another one.
    two = gaussians.adapt(sample, common, PRIORS, 3, 0.5, single_weight=False)
    other = float(((two.means - common.means) / (own.means - common.means))[0, 0])
    assert 0 <= other <= 1 and abs(other - found) > 0.02
