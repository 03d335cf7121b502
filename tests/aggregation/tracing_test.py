"""Every hyper-parameter of an aggregator may be traced, so that a sweep tries several at once."""

import cohorts
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import aggregation
from pfljax.aggregation import messages
from pfljax.training.study.config import hyperparameters

# Besides the defaults, values that make every hyper-parameter count.
OTHERS = {
    "low_rank": {"energy_start": 0.3, "energy_end": 0.6},
    "top_k": {"fraction": 0.35},
    "quantize": {"bits": 3},
    "clip": {"bound": 0.3, "noise_multiplier": 0.7},
    "adaptive_clip": {
        **{"bound": 0.4, "quantile": 0.2, "bound_rate": 0.3},
        **{"noise_multiplier": 0.5, "count_noise": 0.6},
    },
    "over_the_air": {"snr_db": 3.0, "fading": True, "gain_threshold": 0.5, "noise_std": 0.1},
    "median": {},
    "trimmed_mean": {"fraction": 0.34},
}


def outcome(name, values):
    aggregator, sent = aggregation.AGGREGATORS[name](**values), cohorts.uploads()
    if aggregator.combine is None:
        return cohorts.one_round(aggregator, sent)
    stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *sent)
    return aggregator.combine(messages.of_client(stacked), jnp.ones(3, bool), (), None)


@pytest.mark.parametrize("name", aggregation.AGGREGATORS)
def test_traced_hyperparameters_are_those_that_are_known(name):
    assert set(OTHERS[name]) == set(hyperparameters(aggregation.AGGREGATORS[name]))
    traced = jax.jit(lambda values: outcome(name, values))(OTHERS[name])
    for ours, theirs in zip(
        jax.tree.leaves(traced), jax.tree.leaves(outcome(name, OTHERS[name])), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)
