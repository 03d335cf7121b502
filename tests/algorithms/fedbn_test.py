"""FedBN: personalized normalization layers."""

import batch_norm
import federation
import identities
import numpy as np
import plain
import quadratics
from quadratics import MEANS, SHARE, START, near, personal_gaps, steps_towards


def test_closed_form():
    body, head = START[:2], np.zeros((3, 2))
    for _ in range(2):
        body = SHARE @ steps_towards(body, MEANS[:, :2])
        head = steps_towards(head, MEANS[:, 2:])
    outcome = quadratics.run("fedbn", 2)
    near(outcome.server.average.params["body"]["w"], body)
    near(outcome.clients["head"]["w"], head)
    deployed = np.c_[np.tile(body, (3, 1)), head]
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(deployed))


def test_is_fedper_with_normalization_for_a_head():
    task = federation.task("mlp_bn")
    norm = identities.run("fedbn", task=task)
    per = identities.run("fedper", task=task._replace(is_head=task.is_norm))
    federation.assert_close(norm.server, per.server)
    federation.assert_close(norm.clients, per.clients)
    average = identities.run("fedavg", task=task).server.params
    shared = norm.server.average.params
    assert federation.differ(shared["head"], average["head"])
    assert set(shared["body"]) == {"Dense_0"}
    assert set(norm.clients["body"]["BatchNorm_0"]) == {"scale", "bias", "mean", "var"}


def test_batch_norm():
    def one_round(server, clients, ids, found):
        common = server.average.params
        trained = []
        for k in ids:
            body = {**common["body"], **clients[k]["body"]}
            model = plain.train({**common, "body": body}, *plain.examples(k))
            clients[k] = {"body": {plain.NORM: model["body"][plain.NORM]}}
            trained.append({**model, "body": {"Dense_0": model["body"]["Dense_0"]}})
        return server._replace(average=batch_norm.fed_average(server.average, trained, ids))

    batch_norm.check("fedbn", one_round)
