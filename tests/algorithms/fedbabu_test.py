"""FedBABU: a head that is never trained in the rounds, and fine-tuning at the end."""

import batch_norm
import federation
import identities
import jax
import numpy as np
import plain
import quadratics
from quadratics import MEANS, SHARE, START, near, personal_gaps, steps_towards

from pfljax import core
from pfljax.algorithms import ALGORITHMS


def test_closed_form():
    body, head = START[:2], START[2:]
    for _ in range(2):
        body = SHARE @ steps_towards(body, MEANS[:, :2])
    outcome = quadratics.run("fedbabu", 2, fine_tuning_epochs=4)
    near(outcome.server.average.params["body"]["w"], body)
    near(outcome.server.initial_head["head"]["w"], head)
    tuned = steps_towards(np.concatenate([body, head]), MEANS, steps=4)
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(tuned))


def test_without_a_head_is_fedavg_with_fine_tuning():
    headless = federation.task()._replace(is_head=lambda path: False)
    babu = identities.run("fedbabu", task=headless, fine_tuning_epochs=1)
    tuned = identities.run("fedavg_ft", task=headless, fine_tuning_epochs=1)
    federation.assert_close(babu.server.average.params, tuned.server.params)
    federation.assert_close(babu.scores, tuned.scores)


def test_never_moves_the_head_and_so_trains_another_body():
    babu = identities.run("fedbabu", fine_tuning_epochs=0)
    after_one = identities.run("fedbabu", rounds=1, fine_tuning_epochs=0).server
    federation.assert_close(babu.server.initial_head, after_one.initial_head)
    assert federation.differ(babu.server.average.params, after_one.average.params)
    federation.assert_close(babu.scores["personal"], babu.scores["global"])
    assert federation.differ(
        babu.server.average.params, identities.run("fedper").server.average.params
    )
    more = identities.run("fedbabu", fine_tuning_epochs=2)
    federation.assert_close(more.server, babu.server)
    assert federation.differ(more.scores["personal"], babu.scores["personal"])


def test_batch_norm():
    def one_round(server, clients, ids, found):
        start = {**server.average.params, **server.initial_head}
        trained = [plain.train(start, *plain.examples(k), part="body") for k in ids]
        bodies = [{"body": model["body"]} for model in trained]
        return server._replace(average=batch_norm.fed_average(server.average, bodies, ids))

    def personal(server, client, x, y):
        start = {**server.average.params, **server.initial_head}
        return plain.train(start, x, y, epochs=2)

    batch_norm.check("fedbabu", one_round, personal=personal, fine_tuning_epochs=2)


def test_batch_norm_in_a_frozen_head():
    task = batch_norm.task_with_normalization_in_the_head()
    local = batch_norm.LOCAL._replace(observe=task.observe)
    algorithm = ALGORITHMS["fedbabu"](task, local)
    server, _, output = batch_norm.one_client_update(algorithm, 0)
    moved = algorithm.server_update(
        server, core.Uploads(output.sum, ()), None, core.Context(jax.random.key(0), 0, 1)
    )
    before, after = algorithm.global_params(server), algorithm.global_params(moved)
    batch_norm.assert_only_statistics_moved(before, after)
