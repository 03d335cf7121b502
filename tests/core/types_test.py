"""One client's view of the shared examples, and the small helpers of the vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import core


def view(offset, size):
    rows = jnp.arange(10, dtype=jnp.uint8)
    return core.ClientData(
        rows[:, None], rows % 3, jnp.int32(offset), jnp.int32(size), jnp.zeros(3), 6
    )


def test_take_gives_the_clients_own_rows():
    batch = view(offset=4, size=3).take(jnp.array([2, 0, 1]))
    np.testing.assert_array_equal(batch.inputs[:, 0], [6, 4, 5])
    np.testing.assert_array_equal(batch.targets, [0, 1, 2])
    assert batch.mask.tolist() == [True, True, True]
    assert batch.inputs.dtype == jnp.uint8


@pytest.mark.parametrize("offset, size", [(4, 3), (0, 2), (7, 3), (9, 1), (10, 0), (0, 0)])
def test_take_masks_what_is_not_the_clients(offset, size):
    indices = jnp.array([-7, -1, 0, size - 1, size, size + 1, 100, 2**31 - 1])
    batch = view(offset, size).take(indices)
    wanted = np.asarray(indices)
    expected = (wanted >= 0) & (wanted < size)
    assert batch.mask.tolist() == expected.tolist()
    np.testing.assert_array_equal(batch.inputs[expected, 0], offset + wanted[expected])


def test_a_cohort_counts_those_who_came():
    cohort = core.Cohort(jnp.array([3, -1, 0, -1]), jnp.array([5, 0, 1, 0]), num_clients=9)
    assert int(cohort.count) == 2


def test_children_of_a_context_are_independent():
    context = core.Context(jax.random.key(0), jnp.int32(2), jnp.int32(5))
    keys = [context.key, context.child(0).key, context.child(1).key, context.child(0).child(0).key]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 4
    assert context.child(3).round == 2 and context.child(3).num_rounds == 5


def test_rows_are_a_view_of_some_of_the_clients_examples():
    middle = view(offset=4, size=3).rows(1, jnp.int32(3))
    assert int(middle.size) == 2
    batch = middle.take(jnp.array([0, 1, 2]))
    np.testing.assert_array_equal(batch.inputs[:2, 0], [5, 6])
    assert batch.mask.tolist() == [True, True, False]


def test_a_shuffled_view_has_the_same_examples_and_its_rows_keep_the_order():
    data = view(offset=3, size=5)
    everything = jnp.arange(7)
    orders = []
    for seed in range(4):
        mixed = data.shuffled(jax.random.key(seed))
        batch = mixed.take(everything)
        assert batch.mask.tolist() == [True] * 5 + [False] * 2
        orders.append(batch.inputs[:5, 0].tolist())
        assert sorted(orders[-1]) == [3, 4, 5, 6, 7]
        front, back = mixed.rows(0, 2), mixed.rows(2, 5).rows(1, 3)
        assert front.take(jnp.arange(2)).inputs[:, 0].tolist() == orders[-1][:2]
        assert back.take(jnp.arange(2)).inputs[:, 0].tolist() == orders[-1][3:]
        again = mixed.rows(2, 5).shuffled(jax.random.key(9)).take(jnp.arange(3))
        assert sorted(again.inputs[:, 0].tolist()) == sorted(orders[-1][2:])
    assert len({tuple(order) for order in orders}) > 1
    assert not jnp.any(view(offset=10, size=0).shuffled(jax.random.key(0)).take(everything).mask)


def test_a_client_receives_what_the_server_sends_it():
    def client_update(received, client, data, context):
        return core.ClientOutput(state=(received, client))

    unused = dict.fromkeys(("init_server", "init_client", "server_update", "personalize"))
    sends_all = core.Algorithm(client_update=client_update, **unused)
    sends_one = sends_all._replace(download=lambda server, context: server[context.client_id])
    context = core.Context(jax.random.key(0), jnp.int32(0), jnp.int32(1), client_id=2)
    assert sends_all.update_client((7, 8, 9), "mine", None, context).state == ((7, 8, 9), "mine")
    assert sends_one.update_client((7, 8, 9), "mine", None, context).state == (9, "mine")


@pytest.mark.parametrize("size, share, held", [(5, 0.4, 2), (5, 0.0, 0), (2, 1.0, 1), (0, 0.5, 0)])
def test_the_last_examples_are_held_out_but_never_all(size, share, held):
    rest, out = view(offset=3, size=size).hold_out(share)
    assert (int(rest.size), int(out.size)) == (size - held, held)
    batch = out.take(jnp.arange(held))
    np.testing.assert_array_equal(batch.inputs[:, 0], 3 + size - held + np.arange(held))


def test_the_weight_of_a_client():
    data = view(offset=0, size=5)
    assert int(data.weight(True)) == 5 and int(data.weight(False)) == 1
