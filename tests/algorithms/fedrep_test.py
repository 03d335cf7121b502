"""FedRep: the head first and then the body, in epochs of their own."""

import functools

import batch_norm
import federation
import identities
import jax
import numpy as np
import quadratics
from quadratics import MEANS, SHARE, START, near, steps_towards

from pfljax import core
from pfljax.algorithms import ALGORITHMS
from pfljax.engine import sampling


def test_closed_form():
    body, head = START[:2], np.zeros((3, 2))
    for _ in range(2):
        head = steps_towards(head, MEANS[:, 2:], steps=5)
        body = SHARE @ steps_towards(body, MEANS[:, :2])
    outcome = quadratics.run("fedrep", 2, head_epochs=5)
    near(outcome.server.average.params["body"]["w"], body)
    near(outcome.clients["head"]["w"], head)


def test_without_a_head_the_body_is_averaged_as_in_fedavg():
    headless = federation.task()._replace(is_head=lambda path: False)
    federation.assert_close(
        identities.run("fedrep", task=headless).server.average.params,
        identities.run("fedavg").server.params,
    )


def test_differs_from_fedper():
    per, rep = identities.run("fedper"), identities.run("fedrep", head_epochs=2)
    assert federation.differ(per.server.average.params, rep.server.average.params)


def test_moves_the_head_only_in_the_head_epochs():
    # In the first round the head trains before the body, whose epochs then leave it as it is.
    short, long = (
        identities.run(
            "fedrep", rounds=1, local=federation.local_training(shuffle=False, epochs=epochs)
        )
        for epochs in (1, 3)
    )
    assert federation.differ(short.server.average.params, long.server.average.params)
    federation.assert_close(short.clients, long.clients)
    moved = identities.run("fedrep", rounds=1, head_epochs=1)
    assert federation.differ(moved.clients, short.clients)


def test_averages_by_examples_or_uniformly():
    by_size = identities.run("fedrep", head_epochs=1)
    uniform = identities.run("fedrep", head_epochs=1, weight_by_size=False)
    assert federation.differ(by_size.server.average.params, uniform.server.average.params)
    same = {
        "data": identities.twins(),
        "plan": sampling.CohortPlan(num_clients=5, size=5),
        "head_epochs": 1,
    }
    by_size, uniform = (
        identities.run("fedrep", **same, weight_by_size=flag) for flag in (True, False)
    )
    federation.assert_close(by_size.server.average.params, uniform.server.average.params)


def test_batch_norm():
    batch_norm.check(
        "fedrep",
        batch_norm.personal_heads(functools.partial(batch_norm.head_then_body, epochs=3)),
        head_epochs=3,
    )


def test_batch_norm_in_a_frozen_head():
    task = batch_norm.task_with_normalization_in_the_head()
    local = batch_norm.LOCAL._replace(observe=task.observe)
    # Without the check of ranges: a head that is not trained at all.
    algorithm = ALGORITHMS["fedrep"].factory.__wrapped__(task, local, head_epochs=0)
    server, client, output = batch_norm.one_client_update(algorithm, 0)
    moved = algorithm.server_update(
        server, core.Uploads(output.sum, ()), None, core.Context(jax.random.key(0), 0, 1)
    )
    before = algorithm.personalize(server, client, None, None)
    after = algorithm.personalize(moved, output.state, None, None)
    batch_norm.assert_only_statistics_moved(before, after)
