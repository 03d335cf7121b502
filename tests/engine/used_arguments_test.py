"""What methods read of their context and data is found by tracing them."""

import dataclasses

import federation
import jax
import jax.numpy as jnp
import pytest

from pfljax.algorithms import ALGORITHMS
from pfljax.engine import used_arguments


def uses_class_counts(algorithm):
    examples = jax.tree.map(jnp.asarray, federation.examples())
    shapes = jax.eval_shape(
        lambda examples: (examples.population(), examples.of_client(jnp.int32(0))), examples
    )
    return used_arguments.uses_class_counts(algorithm, *shapes)


READERS_OF_CLASS_COUNTS = ("fedgc", "fedgen", "fedjets", "fedlc", "fedrod", "gpfl", "pfedfda")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_class_counts_are_read_by_few_methods(name):
    assert uses_class_counts(federation.make(name)) == (name in READERS_OF_CLASS_COUNTS)


def test_class_counts_are_found_in_each_function():
    plain = federation.make("ditto")

    def init_server(population, key):
        return plain.init_server(population, key), jnp.sum(population.class_counts)

    def init_client(server, profile, key):
        return plain.init_client(server, profile, key), jnp.sum(profile.class_counts)

    def client_update(server, client, data, context):
        output = plain.client_update(server, client, data, context)
        return output._replace(sum=(output.sum, jnp.sum(data.class_counts)))

    def personalize(server, client, data, context):
        params = plain.personalize(server, client, data, context)
        return jax.tree.map(lambda leaf: leaf * data.class_counts[0], params)

    assert not uses_class_counts(plain)
    assert uses_class_counts(plain._replace(personalize=personalize))
    assert uses_class_counts(
        plain._replace(
            init_server=init_server,
            client_update=lambda server, *rest: plain.client_update(server[0], *rest),
            server_update=lambda server, *rest: (plain.server_update(server[0], *rest), server[1]),
            init_client=lambda server, *rest: plain.init_client(server[0], *rest),
            personalize=lambda server, *rest: plain.personalize(server[0], *rest),
        )
    )
    assert uses_class_counts(
        plain._replace(
            init_client=init_client,
            client_update=lambda server, client, *rest: plain.client_update(
                server, client[0], *rest
            )._replace(state=client),
            personalize=lambda server, client, *rest: plain.personalize(server, client[0], *rest),
        )
    )
    # Also where the server leaves unread what a client made of them, as it could not be computed.
    assert uses_class_counts(
        plain._replace(
            client_update=client_update,
            server_update=lambda server, uploads, *rest: plain.server_update(
                server, uploads._replace(total=uploads.total[0]), *rest
            ),
        )
    )


@pytest.mark.parametrize("name", ["fedavg", "ditto"])
def test_rounds_are_the_same_without_class_counts(name):
    algorithm = federation.make(name)
    without = dataclasses.replace(federation.examples(), class_counts=None)
    one, other = (federation.run(algorithm, data=data) for data in (None, without))
    federation.assert_close(
        (one.server, one.clients, one.scores), (other.server, other.clients, other.scores), 0
    )
