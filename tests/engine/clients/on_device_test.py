"""Private states where they lie: guests come, are written, and go home."""

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
        "visits": ids.astype(jnp.int32),
        "key": jax.vmap(jax.random.key)(ids.astype(jnp.uint32)),
    }


@functools.cache
def trip(devices, share, chunk):
    """A program: every client of the hands is read, and 1000 later it is somebody else."""

    def visit(hands):
        clients = states(on_device.owned_ids(devices * share * devices + 1))
        guests = migration.receive_buffer(clients, share)
        hand = migration.gather_states(clients, guests, hands)

        def one(number, state):
            found = state["visits"], state["model"], jax.random.key_data(state["key"])
            return states(state["visits"][None] + 1000), found, ()

        def client(number, state):
            moved, found, _ = one(number, state)
            return jax.tree.map(lambda leaf: leaf[0], moved), found, ()

        numbers = jnp.arange(share)
        hand, found, _ = mapping.map_states(client, hand, numbers, clients_per_chunk=chunk)
        after = migration.scatter_states(hand, hands)
        return found, after | {"key": jax.random.key_data(after["key"])}

    return mapping.over_devices(visit, in_axes=(None,), out_axes=0, devices=jax.devices()[:devices])


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("devices, share", [(1, 6), (2, 72), (4, 6)])
def test_states_are_read_and_written_on_any_device(devices, share, who, chunk):
    draw = np.random.default_rng(share)
    chosen = WHO[who](devices * share, devices).astype(np.int32)
    chosen[draw.choice(chosen.size, chosen.size // 6, replace=False)] = -1
    hands = chosen.reshape(share, devices).T
    (visits, models, keys), after = trip(devices, share, chunk)(hands)

    present = hands >= 0
    expected = states(jnp.asarray(hands[present]))
    np.testing.assert_array_equal(np.asarray(visits)[present], expected["visits"])
    np.testing.assert_array_equal(np.asarray(models)[present], expected["model"])
    np.testing.assert_array_equal(np.asarray(keys)[present], jax.random.key_data(expected["key"]))

    owned = np.arange(after["visits"].shape[1])[None] * devices + np.arange(devices)[:, None]
    owned = np.where(owned < devices * share * devices + 1, owned, -1)
    later = np.where(np.isin(owned, hands[present]), owned + 1000, owned)
    written = states(jnp.asarray(later.reshape(-1)))
    written["key"] = jax.random.key_data(written["key"])
    for name, leaf in written.items():
        found = np.asarray(after[name])
        np.testing.assert_array_equal(found.reshape(leaf.shape), leaf, err_msg=name)
