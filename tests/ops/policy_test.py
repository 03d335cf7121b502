"""Features divided between two heads."""

import jax
import jax.numpy as jnp
import numpy as np

from pfljax.ops import policy


def test_the_parts_add_up_and_depend_on_direction_and_noise():
    keys = jax.random.split(jax.random.key(0), 4)
    made = policy.init(keys[0], 3, jnp.float32)
    features = jax.random.normal(keys[1], (5, 3))
    direction, noise = jax.random.normal(keys[2], (3,)), jax.random.gumbel(keys[3], (5, 2, 3))
    own, common = policy.separate(made, direction, features, 0)
    np.testing.assert_allclose(own + common, features, rtol=1e-6)
    assert np.all((own / features > 0) & (own / features < 1))
    # Only the direction's direction counts, a direction of zero is no fault, and noise counts.
    longer, _ = policy.separate(made, 7 * direction, features, 0)
    np.testing.assert_allclose(longer, own, rtol=1e-5)
    assert np.all(np.isfinite(policy.separate(made, 0 * direction, features, 0)[0]))
    assert np.abs(policy.separate(made, direction, features, noise)[0] - own).max() > 1e-2
    assert np.abs(policy.separate(made, -direction, features, 0)[0] - own).max() > 1e-3
