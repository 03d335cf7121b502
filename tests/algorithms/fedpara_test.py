"""FedPara: federated averaging of the factors of kernels."""

import batch_norm
import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import plain_factors
import plain_rounds
import pytest
from plain_factors import RANK, composed
from plain_loops import Round, mean, rate_of
from quadratics import MEANS, SHARE, near, personal_gaps

from pfljax import core
from pfljax.algorithms import ALGORITHMS
from pfljax.engine.accounting import traffic


def test_closed_form():
    start = plain_factors.run_on_matrices("fedpara", 1, rate=0.0).server.params["head"]["kernel"]
    w = start
    for _ in range(3):
        trained = [plain_factors.steps_on_matrices(w, m, 0.0) for m in MEANS]
        w = {name: np.tensordot(SHARE, np.stack([f[name] for f in trained]), 1) for name in w}
    outcome = plain_factors.run_on_matrices("fedpara", 3)
    found = outcome.server.params["head"]["kernel"]
    jax.tree.map(near, found, w)
    deployed = plain_factors.kernel_of(w, 0.0).ravel()
    gaps = personal_gaps(np.tile(deployed, (3, 1)))
    near(outcome.scores["personal"]["test"]["loss"], gaps)
    near(outcome.scores["global"]["test"]["loss"], gaps)
    assert np.max(np.abs(deployed - plain_factors.kernel_of(start, 0.0).ravel())) > 0.01


def test_differs_from_the_average_of_kernels():
    factors, kernels = identities.run("fedpara", rank=3), identities.run("fedavg")
    assert federation.differ(factors.scores["global"], kernels.scores["global"])
    federation.assert_close(factors.scores["personal"], factors.scores["global"])


@pytest.mark.parametrize("name", ["fedpara", "pfedpara"])
def test_bytes_of_a_round(name):
    """The factors of a client go both ways, or the first half of them; biases always."""
    method = ALGORITHMS[name](federation.task(), federation.local_training(), rank=RANK)
    examples = jax.tree.map(jnp.asarray, federation.examples())
    server = method.init_server(examples.population(), jax.random.key(0))
    client = method.init_client(server, examples.profile(jnp.int32(0)), jax.random.key(1))
    found = traffic.count(method, server, client, examples)
    factors, biases = 2 * RANK * (5 + 4 + 4 + 3), 4 + 3
    numbers = biases + factors // (2 if name == "pfedpara" else 1)
    weight = 1  # goes up with the change
    assert (found.upload, found.download) == (4 * (numbers + weight), 4 * numbers)
    assert core.tree.size(client) == (factors // 2 if name == "pfedpara" else 0)


def test_batch_norm():
    def one_round(server, clients, ids, found):
        start = server.params
        trained = [plain_factors.train_with_batch_norm(start, k, 0.0) for k in ids]
        return batch_norm.fed_average(server, trained, ids)

    def personal(server, client, x, y):
        return composed(server.params, 0.0)

    batch_norm.check("fedpara", one_round, personal=personal, rank=RANK)


def test_plain_loop():
    def loop(world):
        slope = plain_factors.slope_of(world.server.params, 0.0)
        w = plain_rounds.plain.flat(world.server.params)
        for r, cohort in enumerate(world.cohorts):
            trained = {
                k: world.train(k, w, rate_of(r), part=slice(None), gradient=slope) for k in cohort
            }
            w = mean(trained)
            yield Round(w, {})

    plain_rounds.check("fedpara", loop, {"rank": RANK}, lambda server: server.params)
