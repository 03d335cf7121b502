"""Autoencoder of rows: a linear one finds the principal subspace, a hidden layer a curve."""

import jax
import jax.numpy as jnp
import numpy as np

from pfljax.ops import autoencoder, weights


def test_the_optimum_of_a_linear_autoencoder_is_pca():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 8)) + 0.3 * rng.normal(size=(40, 8))
    rows = jnp.array(rows, jnp.float32)
    basis = weights.pca(rows, 2)
    best = jnp.mean((basis.expand(basis.project(rows)) - rows) ** 2)
    params = autoencoder.fit(jax.random.key(0), rows, 2, 0, 0.03, 1500)
    found = autoencoder.error(params, rows)
    assert best * (1 - 1e-5) <= found <= best * 1.01, (found, best)
    decoded = autoencoder.decode(params, autoencoder.encode(params, rows))
    np.testing.assert_allclose(decoded, basis.expand(basis.project(rows)), atol=0.05)
    # The columns of the decoder span the principal directions.
    spanned = params["decoder"][0]["kernel"]
    within = spanned @ basis.directions.T @ basis.directions
    np.testing.assert_allclose(within, spanned, atol=0.02)


def test_a_hidden_layer_follows_a_curve_that_no_line_does():
    angle = np.linspace(-2, 2, 60)
    rows = jnp.array(np.stack([np.cos(angle), np.sin(angle)], axis=1), jnp.float32)
    straight, curved = (
        autoencoder.error(autoencoder.fit(jax.random.key(0), rows, 1, hidden, 0.02, 1000), rows)
        for hidden in (0, 16)
    )
    assert curved < 0.1 * straight, (curved, straight)


def test_shapes_and_the_start():
    params = autoencoder.init(jax.random.key(0), 6, 2, 5, jnp.float32)
    assert [layer["kernel"].shape for layer in params["encoder"]] == [(6, 5), (5, 2)]
    assert [layer["kernel"].shape for layer in params["decoder"]] == [(2, 5), (5, 6)]
    latents = autoencoder.encode(params, jnp.ones((3, 6)))
    assert latents.shape == (3, 2) and autoencoder.decode(params, latents).shape == (3, 6)
