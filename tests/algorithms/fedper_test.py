"""FedPer: a common body and personalized heads."""

import batch_norm
import federation
import identities
import numpy as np
import plain
import pytest
import quadratics
from quadratics import MEANS, SHARE, START, near, steps_towards

from pfljax.core.params import split_params
from pfljax.errors import UserError


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


def test_private_normalization_without_a_head_is_fedbn():
    headless = federation.task("mlp_bn")._replace(is_head=lambda path: False)
    outcome = identities.run("fedper", task=headless, private="BatchNorm")
    expected = identities.run("fedbn", task=headless)
    federation.assert_close(outcome.server.average.params, expected.server.average.params)
    federation.assert_close(outcome.clients, expected.clients)
    averaged = identities.run("fedavg", task=headless).server.params
    shared = split_params(averaged, lambda path: plain.NORM not in path)[0]
    assert federation.differ(outcome.server.average.params, shared)


@pytest.mark.parametrize(
    "private, message",
    [
        ("Attention", "lists 'Attention', which is no layer of the model; .* Dense_0, body, head"),
        ("head, Dense", "leaves no layer to share"),
    ],
)
def test_a_list_of_layers_that_does_not_fit_is_refused(private, message):
    with pytest.raises(UserError, match=f"^hparams.fedper.private {message}"):
        identities.run("fedper", private=private)


def test_batch_norm():
    batch_norm.check("fedper", batch_norm.personal_heads(plain.train))
