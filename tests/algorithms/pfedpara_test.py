"""pFedPara: common first factors and personal second ones."""

import batch_norm
import federation
import jax
import jax.numpy as jnp
import numpy as np
import plain_factors
import plain_rounds
from plain_factors import RANK, composed
from plain_loops import Round, flat, mean, rate_of, vector
from quadratics import MEANS, SHARE, near, personal_gaps

from pfljax import core
from pfljax.algorithms import ALGORITHMS
from pfljax.core.params import join_params, split_params

FIRST, SECOND = ("x1", "y1"), ("x2", "y2")


def is_second(path):
    return path[-1] in SECOND


def test_closed_form():
    outcome = plain_factors.run_on_matrices("pfedpara", 1, rate=0.0)
    w = outcome.server.average.params["head"]["kernel"]
    own = [outcome.server.initial_head["head"]["kernel"]] * 3
    for _ in range(3):
        trained = [
            plain_factors.steps_on_matrices({**w, **second}, m, 1.0)
            for second, m in zip(own, MEANS, strict=True)
        ]
        w = {name: np.tensordot(SHARE, np.stack([f[name] for f in trained]), 1) for name in FIRST}
        own = [{name: f[name] for name in SECOND} for f in trained]
    outcome = plain_factors.run_on_matrices("pfedpara", 3)
    jax.tree.map(near, outcome.server.average.params["head"]["kernel"], w)
    for k, second in enumerate(own):
        jax.tree.map(
            lambda found, wanted, k=k: near(found[k], wanted),
            *(outcome.clients["head"]["kernel"], second),
        )
    deployed = [plain_factors.kernel_of({**w, **second}, 1.0).ravel() for second in own]
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(np.stack(deployed)))


def test_with_second_factors_of_zero_is_the_average_of_low_rank_kernels():
    """Factors of zero have the gradient zero: each kernel remains the first of its product."""
    task, local = federation.task(), federation.local_training(shuffle=False)
    method = ALGORITHMS["pfedpara"](task, local, rank=RANK)
    examples = jax.tree.map(jnp.asarray, federation.examples())
    server = method.init_server(examples.population(), jax.random.key(0))

    def loss(model, batch, key, train=True):
        return task.loss(low_rank(model), batch, key)

    def low_rank(model):
        if not isinstance(model, dict):
            return model
        if "x1" in model:
            return model["y1"] @ model["x1"].T
        return {name: low_rank(child) for name, child in model.items()}

    average = ALGORITHMS["fedavg"](task._replace(loss=loss), local)
    data = examples.of_client(jnp.int32(4))
    context = core.Context(jax.random.key(2), jnp.int32(0), jnp.int32(1), jnp.int32(4))
    wanted = jax.jit(average.update_client)(server.average, (), data, context).sum
    update = jax.jit(method.update_client)
    zeros = jax.tree.map(jnp.zeros_like, server.initial_head)
    found = update(server, zeros, data, context)
    federation.assert_close(found.sum, wanted)
    federation.assert_close(found.state, zeros)
    other = update(server, server.initial_head, data, context)
    assert federation.differ(other.sum, wanted)
    assert federation.differ(other.state, server.initial_head)


def test_batch_norm():
    def one_round(server, clients, ids, found):
        firsts = []
        for k in ids:
            start = join_params(server.average.params, clients[k])
            trained = plain_factors.train_with_batch_norm(start, k, 1.0)
            clients[k], first = split_params(trained, is_second)
            firsts.append(first)
        return server._replace(average=batch_norm.fed_average(server.average, firsts, ids))

    def personal(server, client, x, y):
        return composed(join_params(server.average.params, client), 1.0)

    batch_norm.check("pfedpara", one_round, personal=personal, rank=RANK)


def test_plain_loop():
    def loop(world):
        start = join_params(world.server.average.params, world.server.initial_head)
        slope = plain_factors.slope_of(start, 1.0)
        marks = jax.tree.map_with_path(
            lambda path, leaf: np.full(leaf.shape, path[-1].key in SECOND), start
        )
        personal = flat(marks).astype(bool)
        w, initial, own = flat(start)[~personal], flat(start)[personal], {}
        for r, cohort in enumerate(world.cohorts):
            firsts = {}
            for k in cohort:
                whole = np.zeros(personal.size)
                whole[~personal], whole[personal] = w, own.get(k, initial)
                end = world.train(k, whole, rate_of(r), part=slice(None), gradient=slope)
                firsts[k], own[k] = end[~personal], end[personal]
            w = mean(firsts)
            yield Round(vector(w, initial), dict(own))

    plain_rounds.check("pfedpara", loop, {"rank": RANK})
