"""FedPer: a common body and personalized heads."""

import batch_norm
import federation
import identities
import numpy as np
import plain
import quadratics
from quadratics import MEANS, SHARE, START, near, steps_towards


def test_closed_form():
    body, head = START[:2], np.zeros((3, 2))
    for _ in range(2):
        body = SHARE @ steps_towards(body, MEANS[:, :2])
        head = steps_towards(head, MEANS[:, 2:])
    outcome = quadratics.run("fedper", 2)
    near(outcome.server.average.params["body"]["w"], body)
    near(outcome.clients["head"]["w"], head)


def test_without_a_head_the_body_is_averaged_as_in_fedavg():
    headless = federation.task()._replace(is_head=lambda path: False)
    federation.assert_close(
        identities.run("fedper", task=headless).server.average.params,
        identities.run("fedavg").server.params,
    )


def test_batch_norm():
    batch_norm.check("fedper", batch_norm.personal_heads(plain.train))
