"""Local training: how many steps, on which examples, in which order, and what moves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pfljax import core
from pfljax.core.client_data import random_order
from pfljax.errors import UserError

BATCH = 4
MAX_SIZE = 10
OFFSET = 3  # the client's examples lie between those of two others


def client(size, max_size=MAX_SIZE):
    """A client whose example `i` is the number `i`; the rows of others are far away."""
    rows = jnp.arange(OFFSET + max_size + 2, dtype=jnp.float32) - OFFSET
    rows = jnp.where((rows >= 0) & (rows < size), rows, 1e6)
    return core.ClientData(rows, rows, jnp.int32(OFFSET), jnp.int32(size), jnp.zeros(1), max_size)


def context(seed=0, round=0):
    return core.Context(jax.random.key(seed), jnp.int32(round), jnp.int32(9))


SGD = optax.sgd(0.1)


def local(**changes):
    return core.LocalTraining(SGD, batch_size=BATCH)._replace(**changes)


@functools.cache
def program(local, epochs, steps, max_size):
    """`(size, key) -> what each step sees`, one row a step, and the number of steps."""
    places = 40

    def step(carry, batch, key):
        seen, count = carry
        return seen.at[count].set(jnp.where(batch.mask, batch.inputs, -1)), count + 1

    def run(size, key):
        empty = jnp.full((places, local.batch_size), -2.0), jnp.int32(0)
        moment = core.Context(key, jnp.int32(0), jnp.int32(9))
        return core.for_each_batch(
            step, empty, client(size, max_size), moment, local, epochs=epochs, steps=steps
        )

    return jax.jit(run)


def batches(size, local, *, seed=0, epochs=None, steps=None, max_size=MAX_SIZE):
    """The examples that each step sees, as lists: `[[2, 0, 1, 4], [3]]`."""
    seen, count = program(local, epochs, steps, max_size)(size, jax.random.key(seed))
    seen, count = np.asarray(seen), int(count)
    assert count < len(seen) and np.all(seen[count:] == -2), "a step is missing from the log"
    return [[int(i) for i in row if i >= 0] for row in seen[:count]]


@pytest.mark.parametrize("drop_remainder", [False, True])
@pytest.mark.parametrize("size", [0, 1, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH, MAX_SIZE])
def test_a_client_takes_the_steps_its_own_examples_need(size, drop_remainder):
    training = local(drop_remainder=drop_remainder)
    lengths = [len(batch) for batch in batches(size, training)]
    full, rest = divmod(size, BATCH)
    expected = [BATCH] * full + [rest] * (rest > 0 and not drop_remainder)
    assert lengths == expected
    assert int(core.steps_per_epoch(jnp.int32(size), training)) == len(expected)


def test_a_batch_larger_than_every_client():
    assert sorted(batches(5, local(batch_size=32))[0]) == [0, 1, 2, 3, 4]
    assert batches(5, local(batch_size=32, drop_remainder=True)) == []


@pytest.mark.parametrize("size", [1, 5, 8, 10])
def test_every_example_once_per_epoch_in_a_new_order(size):
    seen = batches(size, local(epochs=3))
    steps = -(-size // BATCH)
    epochs = [sum(seen[i * steps : (i + 1) * steps], []) for i in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(size))
    if size >= 8:
        assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("size, steps", [(10, 2), (10, 3), (10, 7), (3, 5), (10, 0), (0, 4)])
def test_a_number_of_steps_takes_as_many_epochs_as_it_needs(size, steps):
    seen = batches(size, local(), steps=steps)
    everything = batches(size, local(), epochs=8)
    assert seen == everything[: steps if size else 0]


@pytest.mark.parametrize("drop_remainder", [False, True])
@pytest.mark.parametrize("size, steps", [(10, 2), (10, 3), (10, 7), (3, 5), (0, 4)])
def test_a_number_of_steps_per_round(size, steps, drop_remainder):
    training = local(num_steps=steps, epochs=3, drop_remainder=drop_remainder)
    everything = batches(size, training, epochs=8)  # a method's own number of epochs
    assert len(everything) == 8 * int(core.steps_per_epoch(jnp.int32(size), training))
    wanted = everything[:steps]
    assert batches(size, training) == wanted
    assert int(core.steps_per_round(jnp.int32(size), training)) == len(wanted)
    once = training._replace(drop_remainder=False).one_pass()
    assert sorted(sum(batches(size, once), [])) == list(range(size))


def test_the_number_of_steps_follows_from_epochs_without_one():
    assert int(core.steps_per_round(jnp.int32(10), local(epochs=2))) == 6


def test_descend_follows_the_rule_of_the_method_and_returns_its_carry():
    def gradient(model, carry, batch, key):
        return jnp.float32(3), {"w": model["w"] - 5}, carry + jnp.sum(batch.mask)

    start, halved = {"w": jnp.float32(1)}, local(schedule=lambda round: 0.5**round)
    trained = core.descend(gradient, start, jnp.int32(0), client(10), context(round=1), halved)
    assert int(trained.carry) == 10
    np.testing.assert_allclose(trained.params["w"], 5 - 4 * 0.95**3, rtol=1e-6)
    assert float(core.mean(trained.metrics["loss"])) == 3
    nothing = core.descend(gradient, start, jnp.int32(7), client(0), context(), local())
    assert int(nothing.carry) == 7 and float(nothing.params["w"]) == 1


def test_descend_ends_after_the_first_epoch_that_meets_a_criterion():
    def gradient(model, carry, batch, key):
        return jnp.float32(0), {"w": jnp.float32(1)}, carry + jnp.sum(batch.mask)

    def steps(least, size=10, epochs=5, steps=None):
        trained = core.descend(
            *(gradient, {"w": jnp.float32(0)}, jnp.float32(0), client(size), context()),
            local(epochs=epochs),
            steps=steps,
            until=lambda before, after: (before > 0) & (after >= least),
        )
        return round(float(trained.params["w"]) / -0.1), int(trained.carry)

    # Ten examples are three steps of an epoch; the first epoch does not meet any criterion.
    assert steps(0) == (6, 20) and steps(21) == (9, 30)
    assert steps(99) == (15, 50), "all epochs"
    assert steps(21, steps=11) == (9, 30) and steps(99, steps=11) == (11, 38)
    assert steps(0, size=0) == (0, 0)


def test_the_key_decides_the_order():
    first = batches(10, local(), seed=1)
    assert first == batches(10, local(), seed=1)
    assert first != batches(10, local(), seed=2)


def test_the_order_does_not_depend_on_the_largest_client():
    assert batches(7, local(), max_size=8) == batches(7, local(), max_size=30)
    assert batches(7, local(), max_size=8) == batches(7, local(), max_size=5000)


@pytest.mark.parametrize("length, size", [(1, 1), (2, 1), (300, 299), (70_000, 69_990)])
def test_an_order_has_every_number_once_and_the_others_at_the_end(length, size):
    """Of more than 65,536 numbers, ranks have 8 bits at a time."""
    order = np.asarray(random_order(jax.random.key(0), length, jnp.int32(size)))
    np.testing.assert_array_equal(np.sort(order[:size]), np.arange(size))
    np.testing.assert_array_equal(order[size:], np.arange(size, length))
    if size > 100:
        ascending = np.mean(np.diff(order[:size]) > 0)
        assert abs(ascending - 0.5) < 5 * 0.5 / size**0.5


def test_every_example_appears_at_every_position():
    counts = np.zeros((6, 6))
    for seed in range(60):
        for place, example in enumerate(sum(batches(6, local(), seed=seed), [])):
            counts[place, example] += 1
    assert counts.min() >= 2  # 10 are expected; fewer than 2 anywhere: 1 in 100


def test_the_stored_order():
    assert batches(6, local(shuffle=False, epochs=2)) == [[0, 1, 2, 3], [4, 5]] * 2


def test_one_pass_sees_each_example_once_in_stored_order():
    assert batches(6, local(epochs=3, drop_remainder=True).one_pass()) == [[0, 1, 2, 3], [4, 5]]


def test_epochs_override():
    assert len(batches(5, local(epochs=1), epochs=3)) == 3 * 2
    assert batches(5, local(epochs=2), epochs=0) == []


def test_every_step_has_a_key_of_its_own():
    def step(carry, batch, key):
        keys, count = carry
        return keys.at[count].set(jax.random.key_data(key)), count + 1

    start = jnp.zeros((6, 2), jnp.uint32), jnp.int32(0)
    keys, _ = core.for_each_batch(step, start, client(5), context(), local(epochs=3))
    assert len({tuple(row) for row in np.asarray(keys).tolist()}) == 6


def objective(model, batch, key):
    """Half the mean squared distance to the real examples, for both arrays."""
    gaps = (model["a"] - batch.inputs) ** 2 + (model["b"]["c"] - batch.inputs) ** 2
    return 0.5 * jnp.sum(gaps * batch.mask) / jnp.maximum(jnp.sum(batch.mask), 1)


def model(value=0.0):
    return {"a": jnp.float32(value), "b": {"c": jnp.float32(value)}}


def train(size, training, **options):
    return core.train(objective, model(), client(size), context(), training, **options)


def test_the_masked_last_batch_counts_as_the_mean_of_what_it_has():
    trained = train(6, local(shuffle=False))
    theta, losses = 0.0, []
    for batch in (np.array([0, 1, 2, 3.0]), np.array([4, 5.0])):
        losses.append(np.mean((theta - batch) ** 2))  # two arrays, each with half
        theta -= 0.1 * np.mean(theta - batch)
    np.testing.assert_allclose(trained.params["a"], theta, rtol=1e-6)
    np.testing.assert_allclose(trained.metrics["loss"].value, np.mean(losses), rtol=1e-6)


def test_a_client_without_examples_keeps_its_model():
    trained = train(0, local(optimizer=optax.adam(0.1), epochs=2))
    assert trained.params == model()
    assert trained.metrics["loss"] == (0, 0)


def test_clients_of_all_sizes_side_by_side():
    """Under vmap a client that is done waits unharmed for the larger ones."""
    sizes = jnp.arange(MAX_SIZE + 1, dtype=jnp.int32)
    rows = jnp.arange(MAX_SIZE, dtype=jnp.float32)

    def one(size):
        data = core.ClientData(rows, rows, jnp.int32(0), size, jnp.zeros(1), MAX_SIZE)
        return core.train(objective, model(), data, context(), local(epochs=2))

    together = jax.jit(jax.vmap(one))(sizes)
    alone = [jax.jit(one)(size) for size in sizes]
    np.testing.assert_allclose(together.params["a"], [t.params["a"] for t in alone], rtol=1e-6)
    np.testing.assert_allclose(
        together.metrics["loss"].value, [t.metrics["loss"].value for t in alone], rtol=1e-6
    )


def test_trainable_moves_nothing_else():
    adam = local(optimizer=optax.adam(0.1))
    trained = train(5, adam, trainable=lambda path: path == ("b", "c"))
    assert trained.params["a"] == 0
    assert abs(trained.params["b"]["c"]) > 0.05
    assert set(trained.optimizer_state[0].mu) == {"b"}, "frozen arrays have gradients"


def test_another_optimizer():
    slow = train(5, local(shuffle=False), optimizer=optax.sgd(0.0))
    assert slow.params == model()


def test_the_schedule_scales_the_updates():
    halved = local(shuffle=False, batch_size=16, schedule=lambda round: 0.5**round)
    plain = train(6, local(shuffle=False, batch_size=16)).params["a"]
    for round in (0, 1, 3):
        trained = core.train(objective, model(), client(6), context(round=round), halved)
        np.testing.assert_allclose(trained.params["a"], plain * 0.5**round, rtol=1e-6)


def test_a_method_reads_the_clients_learning_rate():
    known = local(learning_rate=0.1)
    assert known.rate(jnp.int32(3)) == 0.1
    decayed = known._replace(schedule=lambda round: 0.5**round)
    np.testing.assert_allclose(decayed.rate(jnp.int32(3)), 0.1 * 0.5**3, rtol=1e-6)
    with pytest.raises(UserError, match="set LocalTraining.learning_rate"):
        local().rate(jnp.int32(0))


def test_training_keeps_dtypes():
    """Also of a half-precision model with a schedule: state must keep its form in the engine."""
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), model())
    training = local(schedule=lambda round: jnp.power(0.9, round))
    trained = core.train(objective, half, client(5), context(), training)
    assert {leaf.dtype for leaf in jax.tree.leaves(trained.params)} == {jnp.float16.dtype}


def watched(model, batch):
    """A task's `observe`: what a step leaves in 'b' is ten times the 'a' it started from."""
    return {"b": {"c": 10 * model["a"]}}


def test_statistics_are_those_of_the_model_before_the_step():
    trained = train(8, local(shuffle=False, observe=watched))
    plain = train(4, local(shuffle=False))  # the first of the two steps
    np.testing.assert_allclose(trained.params["b"]["c"], 10 * plain.params["a"], rtol=1e-6)
    np.testing.assert_allclose(trained.params["a"], train(8, local(shuffle=False)).params["a"])
    nothing = train(0, local(observe=watched))
    assert nothing.params == model()


def test_frozen_statistics_stay():
    watching = local(observe=watched)
    frozen = train(5, watching, trainable=lambda path: path == ("a",))
    assert frozen.params["b"]["c"] == 0 and frozen.params["a"] != 0
    moving = train(5, watching, trainable=lambda path: path == ("b", "c"))
    assert moving.params == model()  # ten times the 'a' that did not move


def test_statistics_of_models_in_a_dict():
    def gradient(models, carry, batch, key):
        return jnp.float32(0), jax.tree.map(jnp.ones_like, models), carry

    models = {"own": model(1.0), "other": model(2.0), "gate": jnp.float32(3)}

    def descend(training):
        return core.descend(gradient, models, (), client(4), context(), training).params

    plain = descend(local())
    both = descend(local(observe=watched).of_models("own", "other"))
    assert both["own"]["b"]["c"] == 10 and both["other"]["b"]["c"] == 20
    assert both["own"]["a"] == plain["own"]["a"] and both["gate"] == plain["gate"]
    one = descend(local(observe=watched).of_models("own"))
    assert one["own"] == both["own"] and one["other"] == plain["other"]
    assert local().of_models("own") == local()
