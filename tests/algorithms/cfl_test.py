"""CFL: clusters of clients that are split by their updates, and FedAvg without a split."""

import batch_norm
import federation
import halving
import identities
import jax
import jax.numpy as jnp
import numpy as np
import plain
import plain_loops
import plain_rounds
import quadratics
from quadratics import MEANS, SIZES, START, near, steps_towards, vector

from pfljax import core
from pfljax.algorithms import ALGORITHMS


def test_closed_form():
    # The round's change of a client is a fixed part of the way to its mean.
    models, cluster = np.tile(START, (4, 1)), np.zeros(3, int)
    for t in range(4):
        ends = steps_towards(models[cluster], MEANS)
        changes = ends - models[cluster]
        unit = changes / np.linalg.norm(changes, axis=1, keepdims=True)
        for c in sorted(set(cluster)):
            own = np.flatnonzero(cluster == c)
            mean = SIZES[own] @ changes[own] / SIZES[own].sum()
            models[c] = models[c] + mean
            lengths = np.linalg.norm(changes[own], axis=1)
            if t >= 1 and len(own) > 2 and np.linalg.norm(mean) < 0.5 and lengths.max() > 0.1:
                _, leaving = halving.best_halves(unit @ unit.T, list(own))
                models[1], cluster[leaving] = models[0], 1
    assert len(set(cluster)) == 2
    outcome = quadratics.run("cfl", 4, eps1=0.5, eps2=0.1, warmup=1, max_clusters=4)
    np.testing.assert_array_equal(outcome.server.cluster, cluster)
    near(vector(outcome.server.models)[:2], models[:2])
    assert outcome.server.count == 2
    gaps = quadratics.personal_gaps(models[cluster])
    near(outcome.scores["personal"]["test"]["loss"], gaps)


def test_without_a_split_is_fedavg():
    full = {"plan": identities.ALL_CLIENTS}
    average = identities.run("fedavg", **full).server.params
    loose = {"eps2": 0.0, "warmup": 1, **full}
    whole, bounded, split = (
        identities.run("cfl", eps1=eps1, max_clusters=most, **loose).server
        for eps1, most in ((0.0, 2), (100.0, 1), (100.0, 2))
    )
    for server in (whole, bounded):
        federation.assert_close(jax.tree.map(lambda leaf: leaf[0], server.models), average)
        assert server.count == 1 and not server.cluster.any()
    assert split.count == 2 and set(split.cluster) == {0, 1}
    assert federation.differ(jax.tree.map(lambda leaf: leaf[1], split.models), average)


def test_a_held_out_client_deploys_the_model_that_fits_it_best():
    task = quadratics.quadratic()
    method = ALGORITHMS["cfl"](task, quadratics.LOCAL, max_clusters=3)
    data = jax.tree.map(jnp.asarray, quadratics.DATA)
    server = method.init_server(core.Population(jnp.array([4, 2]), None), jax.random.key(0))
    # The third model is nearest, but there are two clusters only.
    points = np.stack([MEANS[2] + 9, MEANS[2] + 1, MEANS[2]])
    models = {"body": {"w": jnp.array(points[:, :2])}, "head": {"w": jnp.array(points[:, 2:])}}
    server = server._replace(models=models, count=jnp.int32(2))
    context = core.Context(jax.random.key(0), jnp.int32(0), jnp.int32(1), jnp.int32(2))
    near(vector(method.personalize(server, (), data.of_client(2), context)), points[1])
    own = method.personalize(server, (), data.of_client(1), context._replace(client_id=1))
    near(vector(own), points[0])


def test_batch_norm():
    def one_round(server, clients, ids, found):
        w = jax.tree.map(lambda leaf: leaf[0], server.models)
        trained = [plain.train(w, *plain.examples(k)) for k in ids]
        mean = plain.average(trained, plain.sizes(ids))
        models = jax.tree.map(lambda table, leaf: jnp.stack([leaf, table[1]]), server.models, mean)
        return server._replace(models=models)

    batch_norm.check("cfl", one_round, max_clusters=2)


def test_plain_loop():
    # Half of the clients take part, so that no cluster has all its clients in a round.
    def loop(world):
        for round in plain_loops.fedavg(world):
            models = np.stack([round.server, world.params])
            server = plain_loops.vector(plain_loops.by_array(models), np.zeros(4), 1)
            yield round._replace(server=server, deployed=dict.fromkeys(range(4), round.server))

    plain_rounds.check("cfl", loop, {"eps1": 100.0, "eps2": 0.0, "warmup": 0, "max_clusters": 2})
