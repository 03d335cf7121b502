"""Private states on devices: states of remote clients are gathered, updated and scattered."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax.engine import mapping
from pfljax.engine.clients import migration, on_device

WHO = {
    "at home": lambda clients, devices: np.arange(clients),
    "one owns all": lambda clients, devices: np.arange(clients) * devices,
    "strangers": lambda clients, devices: np.arange(clients) * devices + 1,
}


def states(ids):
    """A row for each id, of several dtypes."""
    return {
        "model": jnp.stack([ids.astype(jnp.float32), -ids.astype(jnp.float32)], axis=-1),
        "rounds": ids.astype(jnp.int32),
        "key": jax.vmap(jax.random.key)(ids.astype(jnp.uint32)),
    }


@functools.cache
def trip(devices, shard, chunk):
    """Returns a program that reads every client of the assignment and adds 1000 to its state."""

    def program(assignment):
        clients = states(on_device.owned_ids(devices * shard * devices + 1))
        buffer = migration.receive_buffer(clients, shard)
        cohort = migration.gather_states(clients, buffer, assignment)

        def one(number, state):
            found = state["rounds"], state["model"], jax.random.key_data(state["key"])
            return states(state["rounds"][None] + 1000), found, ()

        def client(number, state):
            moved, found, _ = one(number, state)
            return jax.tree.map(lambda leaf: leaf[0], moved), found, ()

        numbers = jnp.arange(shard)
        cohort, found, _ = mapping.map_states(client, cohort, numbers, clients_per_chunk=chunk)
        after = migration.scatter_states(cohort, assignment)
        return found, after | {"key": jax.random.key_data(after["key"])}

    return mapping.over_devices(
        program, in_axes=(None,), out_axes=0, devices=jax.devices()[:devices]
    )


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("devices, shard", [(1, 6), (2, 72), (4, 6)])
def test_states_are_read_and_written_on_any_device(devices, shard, who, chunk):
    draw = np.random.default_rng(shard)
    chosen = WHO[who](devices * shard, devices).astype(np.int32)
    chosen[draw.choice(chosen.size, chosen.size // 6, replace=False)] = -1
    assignment = chosen.reshape(shard, devices).T
    (rounds, models, keys), after = trip(devices, shard, chunk)(assignment)

    present = assignment >= 0
    expected = states(jnp.asarray(assignment[present]))
    np.testing.assert_array_equal(np.asarray(rounds)[present], expected["rounds"])
    np.testing.assert_array_equal(np.asarray(models)[present], expected["model"])
    np.testing.assert_array_equal(np.asarray(keys)[present], jax.random.key_data(expected["key"]))

    owned = np.arange(after["rounds"].shape[1])[None] * devices + np.arange(devices)[:, None]
    owned = np.where(owned < devices * shard * devices + 1, owned, -1)
    later = np.where(np.isin(owned, assignment[present]), owned + 1000, owned)
    written = states(jnp.asarray(later.reshape(-1)))
    written["key"] = jax.random.key_data(written["key"])
    for name, leaf in written.items():
        found = np.asarray(after[name])
        np.testing.assert_array_equal(found.reshape(leaf.shape), leaf, err_msg=name)
