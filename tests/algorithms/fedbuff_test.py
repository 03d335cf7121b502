"""FedBuff: updates of earlier versions of the model, and uniform FedAvg without delay."""

import delays
import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain_loops
import plain_rounds
import pytest
import quadratics
from quadratics import MEANS, START, near, steps_towards, vector

from pfljax import core
from pfljax.algorithms import ALGORITHMS
from pfljax.engine.programs import Inputs, Method
from pfljax.ops import staleness


def test_closed_form(monkeypatch):
    delays.follow(monkeypatch)
    rate, exponent, versions = 0.8, 0.5, [START]
    for t in range(4):
        late = np.minimum(delays.TABLE[t, :3], t)
        late = np.minimum(late, 2)
        start = np.stack([versions[t - s] for s in late])
        change = (1 + late[:, None]) ** -exponent * (steps_towards(start, MEANS) - start)
        versions.append(versions[-1] + rate * change.mean(axis=0))
    outcome = quadratics.run(
        "fedbuff", 4, exponent=exponent, max_staleness=2, server_optimizer=optax.sgd(rate)
    )
    near(vector(outcome.server.method.params), versions[-1])
    newest = [
        vector(jax.tree.map(lambda x, v=v: x[v % 3], outcome.server.versions)[0]) for v in (2, 3, 4)
    ]
    near(newest, versions[2:])


def test_without_delay_is_uniform_averaging():
    same = {"data": identities.twins(), "plan": quadratics.sampling.CohortPlan(5, 5)}
    average = identities.run("fedavg", **same).server.params  # all clients have one size
    prompt, late = (identities.run("fedbuff", delay=d, **same) for d in (0.0, 3.0))
    federation.assert_close(prompt.server.method.params, average)
    federation.assert_close(prompt.scores, identities.run("fedavg", **same).scores, 1e-5)
    assert federation.differ(late.server.method.params, average)
    assert not prompt.metrics["staleness"].any()
    assert late.metrics["staleness"][0] == 0 < late.metrics["staleness"][2]
    equal = identities.run("fedbuff", delay=3.0, exponent=0.0, **same)
    assert federation.differ(late.server.method.params, equal.server.method.params)


def test_slow_clients_are_late_and_the_mean_is_that_of_the_clock():
    run, clients = jax.random.key(0), 400

    def contexts(round):
        key = jax.random.fold_in(run, round)
        return jax.vmap(
            lambda k: core.Context(
                jax.random.fold_in(key, k), round, 9, k, jax.random.fold_in(run, k)
            )
        )(jnp.arange(clients))

    late = np.stack([jax.vmap(staleness.clock(3.0))(contexts(t)) for t in range(40)])
    slowness = late.mean(axis=0)
    assert np.ptp(late, axis=0).max() <= 1  # a client's training takes the same time in each round
    np.testing.assert_allclose(late.mean(), 3.0, rtol=0.1)
    half_normal = 3.0 * np.sqrt(np.pi / 2) * np.abs(np.random.default_rng(0).normal(size=10**5))
    np.testing.assert_allclose(
        np.quantile(slowness, [0.25, 0.5, 0.9]),
        np.quantile(half_normal, [0.25, 0.5, 0.9]),
        rtol=0.2,
    )
    assert not jax.vmap(staleness.clock(0.0))(contexts(0)).any()


@pytest.mark.parametrize("name", ["fedcac", "afl"])  # a state and an exchange; a download
def test_any_method_may_be_delayed(name):
    task = federation.task()
    method = ALGORITHMS[name](task, federation.local_training(shuffle=False))

    def make(frozen, values, server_data):
        clock, discount = staleness.clock(values["delay"]), staleness.polynomial(0.5)
        return Method(staleness.delayed(method, clock, discount, 2), task)

    programs, prompt = federation.programs(make), identities.run(name)
    for delay, same in ((0.0, True), (4.0, False)):
        inputs = Inputs(values={"delay": jnp.float32(delay)})
        found = programs.run(federation.examples(), inputs)
        assert federation.differ(found.server.method, prompt.server, least=1e-5) != same
        if same:
            federation.assert_close(found.clients, prompt.clients)


def test_an_empty_cohort_makes_no_version():
    plan = quadratics.sampling.CohortPlan(num_clients=8, size=2, sampling="poisson")
    outcome = identities.run("fedbuff", plan=plan, rounds=8, delay=2.0)
    cohorts = outcome.metrics["cohort"]
    assert 0 < np.sum(cohorts == 0) < 8, "no round was empty"
    assert outcome.server.number == np.sum(cohorts > 0)
    newest = int(outcome.server.number) % 11
    row = jax.tree.map(lambda leaf: leaf[newest], outcome.server.versions)
    jax.tree.map(np.testing.assert_array_equal, row, outcome.server.method)


def test_plain_loop(monkeypatch):
    delays.follow(monkeypatch)

    def loop(world):
        versions = [world.params]
        for r, cohort in enumerate(world.cohorts):
            changes = []
            for k in cohort:
                late = min(delays.TABLE[r, k], r)
                start = versions[r - late]
                change = world.train(k, start, plain_loops.rate_of(r)) - start
                changes.append((1 + late) ** -0.7 * change)
            versions.append(versions[-1] + np.mean(changes, axis=0))
            yield plain_loops.Round(versions[-1], {})

    plain_rounds.check("fedbuff", loop, {"exponent": 0.7}, lambda server: server.method.params)
