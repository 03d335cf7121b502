"""PFL-DA: private bodies for a common head, and private heads near it."""

import batch_norm
import federation
import identities
import jax.numpy as jnp
import numpy as np
import plain
import plain_rounds
import quadratics
from plain_loops import BODY, HEAD, Round, mean, rate_of, slope, vector
from quadratics import ETA, MEANS, SHARE, START, near, personal_gaps, steps_towards

from pfljax.algorithms import ALGORITHMS


def test_closed_form():
    lam, g = 0.8, START[2:]
    body, head = np.tile(START[:2], (3, 1)), np.tile(START[2:], (3, 1))
    for _ in range(3):
        target = (MEANS[:, 2:] + lam * g) / (1 + lam)
        head = steps_towards(head, target, rate=ETA * (1 + lam))
        body = steps_towards(body, MEANS[:, :2])
        g = SHARE @ steps_towards(g, MEANS[:, 2:])
    outcome = quadratics.run("pflda", 3, lam=lam)
    near(outcome.server.average.params["head"]["w"], g)
    near(outcome.clients.body["body"]["w"], body)
    near(outcome.clients.head["head"]["w"], head)
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(np.hstack([body, head])))


def test_bodies_and_common_head_are_fedper_s_with_both_exchanged():
    task = federation.task()
    exchanged = task._replace(is_head=task.is_body)
    method = ALGORITHMS["fedper"](exchanged, federation.local_training(shuffle=False))
    swapped = federation.run(method)
    free, near_it = (identities.run("pflda", lam=lam) for lam in (0.0, 2.0))
    for outcome in (free, near_it):
        federation.assert_close(outcome.server.average.params, swapped.server.average.params)
        federation.assert_close(outcome.clients.body, swapped.clients)
    assert federation.differ(free.clients.head, near_it.clients.head)
    alone = identities.run("local").clients
    assert federation.differ(near_it.clients.head, {"head": alone["head"]})


def test_batch_norm():
    lam = 0.8

    def objective(model, x, y, g):
        gaps = [jnp.sum((model["head"][n] - g["head"][n]) ** 2) for n in ("kernel", "bias")]
        return plain.loss(model, x, y) + lam / 2 * sum(gaps)

    def one_round(server, clients, ids, found):
        g, heads = server.average.params, []
        for k in ids:
            own = clients[k]
            data = plain.examples(k)
            tuned = plain.train({**own.body, **own.head}, *data, objective, g, part="head")
            trained = plain.train({**own.body, **g}, *data)
            heads.append({"head": trained["head"]})
            clients[k] = own._replace(body={"body": trained["body"]}, head={"head": tuned["head"]})
        return server._replace(average=batch_norm.fed_average(server.average, heads, ids))

    batch_norm.check("pflda", one_round, lam=lam)


def test_plain_loop():
    lam = 0.8

    def loop(world):
        g, own = world.params[HEAD], {}
        for r, cohort in enumerate(world.cohorts):
            models = {}
            for k in cohort:
                theta = own.get(k, vector(world.params[BODY], g))

                def gradient(theta, x, y, g=g):
                    return slope(theta, x, y) + lam * (theta - vector(np.zeros(24), g))

                tuned = world.train(k, theta, rate_of(r), part=HEAD, gradient=gradient)
                models[k] = world.train(k, vector(theta[BODY], g), rate_of(r))
                own[k] = vector(models[k][BODY], tuned[HEAD])
            g = mean(models)[HEAD]
            yield Round(vector(g, world.params[BODY]), dict(own), dict(own))

    plain_rounds.check("pflda", loop, {"lam": lam})
