"""The upload and download of a client, computed by hand for a 5-4-3 MLP."""

import dataclasses

import federation
import jax
import jax.numpy as jnp
import optax
import pytest

from pfljax import aggregation, core
from pfljax.core import tree
from pfljax.engine.accounting import traffic

FLOAT = 4
BODY = FLOAT * (5 * 4 + 4)
HEAD = FLOAT * (4 * 3 + 3)
MODEL = BODY + HEAD
WEIGHT = FLOAT
ID, FLAG = 4, 1


def count(algorithm, known=slice(None)):
    examples = jax.tree.map(jnp.asarray, federation.examples())
    key = jax.random.key(0)
    server = algorithm.init_server(examples.population(), key)
    client = algorithm.init_client(server, examples.profile(jnp.int32(0)), key)
    offsets, sizes = (
        {split: each[known] for split, each in of_splits.items()}
        for of_splits in (examples.offsets, examples.sizes)
    )
    some = dataclasses.replace(
        examples, offsets=offsets, sizes=sizes, class_counts=examples.class_counts[known]
    )
    return traffic.count(algorithm, server, client, some)


@pytest.mark.parametrize(
    "name, upload, download",
    [
        ("local", 0, 0),
        ("fedavg", MODEL + WEIGHT, MODEL),
        ("fedprox", MODEL + WEIGHT, MODEL),
        ("fedavg_ft", MODEL + WEIGHT, MODEL),
        ("ditto", MODEL + WEIGHT, MODEL),
        ("scaffold", 2 * MODEL + WEIGHT, 2 * MODEL),
        ("fedper", BODY + WEIGHT, BODY),
        ("fedrep", BODY + WEIGHT, BODY),
        ("fedem", 3 * MODEL + WEIGHT, 3 * MODEL),
        ("fedfomo", MODEL + 5 * (FLOAT + ID), 4 * (MODEL + ID + FLAG)),
        ("apple", MODEL, 8 * (MODEL + FLOAT)),
        ("pfedhn", MODEL, MODEL),
    ],
)
def test_bytes_of_one_client(name, upload, download):
    assert count(federation.make(name))[:2] == (upload, download)


@pytest.mark.parametrize("name", ["fedpac", "fedcac"])
def test_the_examples_of_one_client_suffice(name):
    algorithm = federation.make(name)
    assert count(algorithm, known=slice(1)) == count(algorithm)


@pytest.mark.parametrize("name", ["fedpac", "fedcac", "fedproto"])
def test_what_a_robust_rule_sees_is_uploaded_once(name):
    algorithm = federation.make(name)
    seen = count(aggregation.apply(algorithm, aggregation.median()))
    plain = count(algorithm)
    assert seen == (plain.upload, plain.download, plain.upload)


def test_the_servers_optimizer_stays_at_the_server():
    adam = count(federation.make("fedavg", server_optimizer=optax.adam(0.1)))
    assert adam == count(federation.make("fedavg"))


def test_only_used_rows_and_carried_values_are_counted():
    def client_update(server, client, data, context):
        return core.ClientOutput((), sum=server["passed_on"], each=jnp.zeros(3, jnp.float16))

    server = {"passed_on": jnp.zeros(5, jnp.int8), "unread": jnp.zeros(1000)}
    algorithm = federation.make("local")._replace(client_update=client_update)
    examples = jax.tree.map(jnp.asarray, federation.examples())
    assert traffic.count(algorithm, server, (), examples) == traffic.Traffic(5 + 6, 5, 6)


def test_only_what_is_sent_to_the_client_is_downloaded():
    def client_update(received, client, data, context):
        return core.ClientOutput((), sum=received["mine"] * 1)

    def download(server, context):
        return {"mine": server[context.client_id], "others": server}

    algorithm = federation.make("local")._replace(client_update=client_update, download=download)
    examples = jax.tree.map(jnp.asarray, federation.examples())
    sent = traffic.count(algorithm, jnp.zeros((9, 4)), (), examples)
    assert sent == traffic.Traffic(16, 16)


def with_replies():
    """A method whose clients send two ids, and train the rows of the server's table there."""

    def client_update(received, client, data, context):
        rows = [context.reply(jnp.int32(index)) for index in (0, 1)]
        return core.ClientOutput((), sum=core.weighted(rows[0] + rows[1] + received["bias"], 1.0))

    def reply(server, message, context):
        return server["table"][message]

    return federation.make("local")._replace(client_update=client_update, reply=reply)


def test_replies_and_not_what_they_are_made_of_are_downloaded():
    server = {"table": jnp.zeros((9, 4)), "bias": jnp.zeros(4)}
    examples = jax.tree.map(jnp.asarray, federation.examples())
    sent = traffic.count(with_replies(), server, (), examples)
    message, row = 4, 16
    assert sent == traffic.Traffic(row + WEIGHT + 2 * message, 3 * row, 2 * message)


def test_an_array_that_is_sent_twice_is_counted_once():
    def client_update(received, client, data, context):
        change = jnp.ones(5) * data.size
        first, second = context.reply(change), context.reply((change, jnp.ones(2) * data.size))
        return core.ClientOutput((), each=(change, first + second))

    method = with_replies()._replace(
        client_update=client_update, reply=lambda server, message, context: jnp.zeros(3)
    )
    examples = jax.tree.map(jnp.asarray, federation.examples())
    sent = FLOAT * (5 + 2 + 3)
    assert traffic.count(method, (), (), examples) == traffic.Traffic(sent, FLOAT * 6, sent)


def test_messages_with_a_reply_are_part_of_what_an_aggregator_reports():
    method = aggregation.apply(with_replies(), aggregation.over_the_air())
    server = {"table": jnp.arange(36.0).reshape(9, 4), "bias": jnp.ones(4)}
    data = jax.tree.map(jnp.asarray, federation.examples()).of_client(jnp.int32(0))
    context = core.Context(jax.random.key(0), jnp.int32(0), jnp.int32(1), jnp.int32(0))
    output = method.update_client(server, (), data, context)
    assert output.sum.message.value.tolist() == [5, 7, 9, 11]
    scalars = tree.num_bytes(output.sum.terms)
    assert output.size.bits == 8 * (16 + WEIGHT + 2 * 4 + scalars)


def test_what_other_clients_computed_from_the_state_is_downloaded():
    def client_update(server, client, data, context):
        return core.ClientOutput(client, each=client["mixed"])

    def exchange(server, client, data, uploads, cohort, member, context):
        return {**client, "mixed": jnp.mean(uploads.each, axis=0)}

    algorithm = federation.make("local")._replace(client_update=client_update, exchange=exchange)
    examples = jax.tree.map(jnp.asarray, federation.examples())
    client = {"mixed": jnp.zeros(5), "own": jnp.zeros(1000)}
    assert traffic.count(algorithm, (), client, examples) == traffic.Traffic(20, 20, 20)
