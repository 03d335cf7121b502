"""Cohorts: their sizes, their distribution, and their assignment to devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfljax.engine import sampling


def draws(plan, count):
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.vmap(lambda key: sampling.sample(plan, key))(keys))


def test_full_participation_includes_all_clients():
    ids = sampling.sample(sampling.CohortPlan(num_clients=7, size=7), jax.random.key(0))
    np.testing.assert_array_equal(np.sort(ids), np.arange(7))


def test_fixed_cohorts_are_uniform_without_replacement():
    ids = draws(sampling.CohortPlan(num_clients=10, size=4), 2000)
    assert ids.shape == (2000, 4)
    assert all(len(set(row)) == 4 for row in ids)
    frequency = np.bincount(ids.ravel(), minlength=10) / 2000
    np.testing.assert_allclose(frequency, 0.4, atol=0.05)


def test_poisson_cohorts_have_the_right_size_and_independent_members():
    plan = sampling.CohortPlan(num_clients=20, size=5, sampling="poisson")
    ids = draws(plan, 4000)
    assert plan.capacity < 20 or ids.shape[1] == 20
    present = np.stack([(ids == client).any(axis=1) for client in range(20)], axis=1)
    counts = present.sum(axis=1)
    np.testing.assert_array_equal(counts, (ids >= 0).sum(axis=1))
    np.testing.assert_allclose(present.mean(axis=0), 0.25, atol=0.04)
    np.testing.assert_allclose(counts.var(), 20 * 0.25 * 0.75, rtol=0.1)
    together = (present[:, 0] & present[:, 1]).mean()
    np.testing.assert_allclose(together, 0.25**2, atol=0.02)


def test_dropout_replaces_clients_by_padding():
    ids = draws(sampling.CohortPlan(num_clients=10, size=10, dropout=0.3), 1000)
    np.testing.assert_allclose((ids < 0).mean(), 0.3, atol=0.03)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=12),
    devices=st.integers(1, 5),
    chunk=st.integers(1, 3),
    prefer_owner=st.booleans(),
)
def test_assignment_keeps_every_client_and_balances_the_load(sizes, devices, chunk, prefer_owner):
    ids = jnp.arange(len(sizes), dtype=jnp.int32)
    assignment = np.asarray(
        sampling.assign(
            ids, jnp.array(sizes), num_devices=devices, chunk=chunk, prefer_owner=prefer_owner
        )
    )
    assert assignment.shape[0] == devices and assignment.shape[1] % chunk == 0
    np.testing.assert_array_equal(np.sort(assignment[assignment >= 0]), np.arange(len(sizes)))
    loads = np.where(assignment >= 0, np.array(sizes)[assignment], 0).sum(axis=1)
    assert loads.max() - loads.min() <= max(sizes)
    for shard in assignment:
        own = [sizes[i] for i in shard if i >= 0]
        assert own == sorted(own, reverse=True)


@pytest.mark.parametrize(("devices", "gap"), [(2, 2), (4, 362)])
def test_the_loads_of_small_cohorts_are_balanced(devices, gap):
    """In alternating order, the largest of two shards would have 776 examples more, of four 952."""
    sizes = [1972, 374, 1222, 1905, 1437, 4641, 942, 951, 2700, 3004]
    sizes = np.array([*sizes, 2337, 2829, 2709, 1600, 4297, 4086, 2721, 4239, 3949, 4577])
    assignment = sampling.assign(
        jnp.arange(20, dtype=jnp.int32), jnp.array(sizes), num_devices=devices, chunk=1
    )
    assert np.ptp(sizes[np.asarray(assignment)].sum(axis=1)) <= gap


@pytest.mark.parametrize("devices", [2, 4])
def test_most_clients_train_on_the_device_that_owns_them(devices):
    """Of a hundred for each device; none moves where all homes are as full in every size."""

    def remote_fraction(ids, sizes):
        assignment = sampling.assign(
            jnp.array(ids), jnp.array(sizes), num_devices=devices, chunk=1, prefer_owner=True
        )
        assignment = np.asarray(assignment)
        placed = {client: int(sizes[place]) for place, client in enumerate(ids)}
        loads = [sum(placed[client] for client in shard) for shard in assignment.tolist()]
        assert np.ptp(loads) < 0.02 * max(loads)
        assert sorted(assignment.reshape(-1)) == sorted(ids)
        return float(np.mean(assignment % devices != np.arange(devices)[:, None]))

    draw, count = np.random.default_rng(0), 100 * devices
    drawn = draw.choice(10 * count, count, replace=False).astype(np.int32)
    assert 0 < remote_fraction(drawn, draw.integers(50, 150, count)) < 0.25
    all_clients = np.arange(count, dtype=np.int32)
    assert remote_fraction(all_clients, np.full(count, 7)) == 0
    # All live on the first device: the others have no other clients to train.
    remote = remote_fraction(devices * all_clients, draw.integers(50, 150, count))
    assert remote == pytest.approx(1 - 1 / devices)


@pytest.mark.parametrize("size", [1, 3, 19])
def test_the_capacity_holds_nearly_every_poisson_draw(size):
    plan = sampling.CohortPlan(num_clients=20, size=size, sampling="poisson")
    assert size <= plan.capacity <= 20


def test_a_small_cohort_of_many_is_uniform_and_its_clients_differ():
    """Sixty clients, three drawn: the way taken where a cohort is a small part."""
    ids = draws(sampling.CohortPlan(num_clients=60, size=3), 4000)
    assert all(len(set(row)) == 3 for row in ids)
    for place in range(3):
        frequency = np.bincount(ids[:, place], minlength=60) / 4000
        np.testing.assert_allclose(frequency, 1 / 60, atol=0.01)


def test_clients_drawn_twice_are_drawn_again():
    """Every place is taken, which needs many draws."""
    ids = jax.vmap(lambda key: sampling._distinct(key, 12, 12))(
        jax.random.split(jax.random.key(0), 300)
    )
    np.testing.assert_array_equal(np.sort(ids), np.tile(np.arange(12), (300, 1)))
    assert len({int(row[0]) for row in ids}) == 12
