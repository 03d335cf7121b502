"""LG-FedAvg: a common head and private bodies."""

import batch_norm
import federation
import identities
import numpy as np
import plain
import plain_loops
import plain_rounds
import quadratics
from plain_loops import BODY, HEAD, Round, mean, rate_of, vector
from quadratics import MEANS, SHARE, START, near, personal_gaps, steps_towards


def test_closed_form():
    body, head = np.zeros((3, 2)), START[2:]
    for _ in range(2):
        body = steps_towards(body, MEANS[:, :2])
        head = SHARE @ steps_towards(head, MEANS[:, 2:])
    outcome = quadratics.run("lg_fedavg", 2)
    near(outcome.server.average.params["head"]["w"], head)
    near(outcome.clients["body"]["w"], body)
    deployed = np.c_[body, np.tile(head, (3, 1))]
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(deployed))


def test_is_fedper_with_body_and_head_exchanged():
    task = federation.task()
    exchanged = task._replace(is_head=lambda path: not task.is_head(path))
    lg, per = identities.run("lg_fedavg"), identities.run("fedper", task=exchanged)
    federation.assert_close(lg.server, per.server)
    federation.assert_close(lg.clients, per.clients)
    average = identities.run("fedavg").server.params
    assert federation.differ(lg.server.average.params["head"], average["head"])


def test_batch_norm():
    def one_round(server, clients, ids, found):
        heads = []
        for k in ids:
            trained = plain.train({**server.average.params, **clients[k]}, *plain.examples(k))
            clients[k] = {"body": trained["body"]}
            heads.append({"head": trained["head"]})
        return server._replace(average=batch_norm.fed_average(server.average, heads, ids))

    batch_norm.check("lg_fedavg", one_round)


def loop(world: plain_loops.World):
    head, bodies = world.params[HEAD], {}
    for r, cohort in enumerate(world.cohorts):
        models = {
            k: world.train(k, vector(bodies.get(k, world.params[BODY]), head), rate_of(r))
            for k in cohort
        }
        bodies |= {k: theta[BODY] for k, theta in models.items()}
        head = mean(models)[HEAD]
        deployed = {k: vector(own, head) for k, own in bodies.items()}
        yield Round(vector(head, world.params[BODY]), dict(bodies), deployed)


def test_plain_loop():
    plain_rounds.check("lg_fedavg", loop, {})
