"""Checkpoints: the layout without devices, and what is said of those that cannot be read."""

import contextlib
import json
import pathlib
import shutil
import sys
from typing import NamedTuple

import federation
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from pfljax.core import FederatedState
from pfljax.engine import mapping
from pfljax.engine.clients.on_device import to_devices, to_host
from pfljax.errors import UserError
from pfljax.training.run import checkpoint, writers
from pfljax.training.run.checkpoint import Checkpoints

NUM_CLIENTS = 7

# Reads that Orbax abandons may end at any later moment, in a thread that complains of it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def on_host(width=3, round=5):
    """A state as `to_host` gives it: several dtypes, a typed key's data, a row per client."""
    ids = np.arange(NUM_CLIENTS)
    return FederatedState(
        server={"w": np.arange(width, dtype=np.float32), "count": np.int32(3)},
        clients={
            "w": (ids[:, None] + np.arange(width) / 8).astype(np.float32),
            "flag": ids % 2 == 0,
            "key": np.stack([np.asarray(jax.random.key_data(jax.random.key(i))) for i in ids]),
        },
        round=np.int32(round),
        key=np.asarray(jax.random.key_data(jax.random.key(1))),
    )


def template(width=3):
    """A state of the same form on one device, with typed keys."""
    host = on_host(width)
    clients = {
        "w": jnp.zeros((1, NUM_CLIENTS, width)),
        "flag": jnp.zeros((1, NUM_CLIENTS), bool),
        "key": jax.random.split(jax.random.key(9), (1, NUM_CLIENTS)),
    }
    server = jax.tree.map(jnp.zeros_like, host.server)
    return FederatedState(server, clients, jnp.int32(0), jax.random.key(9))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.map(lambda leaf: leaf.dtype, a) == jax.tree.map(lambda leaf: leaf.dtype, b)


@pytest.mark.parametrize("devices", [1, 2, 3, 4])
def test_there_and_back_on_any_number_of_devices(devices):
    used = jax.devices()[:devices]
    state = to_devices(on_host(), template(), used)
    rows = -(-NUM_CLIENTS // devices)
    assert state.clients["w"].shape == (devices, rows, 3)
    assert state.clients["key"].shape == (devices, rows)
    assert jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key)
    for client in range(NUM_CLIENTS):  # client i is row i // devices of device i % devices
        row = state.clients["w"][client % devices, client // devices]
        np.testing.assert_array_equal(row, on_host().clients["w"][client])
    federation.same_on_every_device(state.server["w"])
    assert_same(to_host(state, NUM_CLIENTS), on_host())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoints of rounds 5 and 6."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(folder)
    for round in (4, 5, 6):
        state = to_devices(on_host(round=round), template(), jax.devices()[:2])
        checkpoints.save(state, NUM_CLIENTS)
    checkpoints.close()
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it, to be damaged."""
    shutil.copytree(saved, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def restore(folder, like=None, devices=3):
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.restore(like or template(), NUM_CLIENTS, jax.devices()[:devices])[
            0
        ].state
    finally:
        checkpoints.close()


def test_orbax_alone_finds_arrays_by_their_paths(saved):
    found = ocp.StandardCheckpointer().restore(saved / "6" / "state")
    assert set(found) == {"server", "clients", "round", "key"}
    assert set(found["clients"]) == {"w", "flag", "key"}
    np.testing.assert_array_equal(found["server"]["w"], on_host().server["w"])
    np.testing.assert_array_equal(found["clients"]["w"], on_host().clients["w"])


class Pair(NamedTuple):
    first: jax.Array
    second: tuple


def test_paths_of_all_kinds_of_containers(tmp_path):
    """Names with the separators of Orbax or of paths, lists, named tuples, and no container."""
    leaf = np.arange(3.0, dtype=np.float32)
    server = {
        "0.kernel": leaf,
        "a/b": [leaf + 1, (leaf + 2,)],
        "c": Pair(leaf + 3, ()),
        "d": {4: leaf + 4},
    }
    state = on_host()._replace(server=server, clients=leaf + 5)
    names = set(checkpoint.by_path(state))
    assert {"server/c/first", "server/a/b/0", "server/a/b/1/0", "clients"} <= names
    like = template()._replace(
        server=jax.tree.map(jnp.zeros_like, server), clients=jnp.zeros((1, 3))
    )
    on_devices = to_devices(state, like, jax.devices()[:1])
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        checkpoints.save(on_devices, 3)
        (restored,) = checkpoints.restore(like, 3, jax.devices()[:2])
    assert_same(to_host(restored.state, 3), state)
    with pytest.raises(UserError, match="two arrays with the path 'a/b'"):
        checkpoint.by_path({"a": {"b": leaf}, "a/b": leaf})


def save_as_before(folder, state):
    """Writes a checkpoint in the layout of earlier versions, with arrays by their indices."""
    leaves = {f"{index:04d}": leaf for index, leaf in enumerate(jax.tree.leaves(state))}
    content = json.dumps({"rows": [1], "digests": checkpoint.digests(leaves)})
    notes = {"content": content, "digest": writers.digest(content.encode())}
    items = {"state": ocp.args.StandardSave(leaves), "notes": ocp.args.JsonSave(notes)}
    with ocp.CheckpointManager(folder) as manager:
        manager.save(int(state.round), args=ocp.args.Composite(**items))


def test_a_checkpoint_of_an_earlier_version(tmp_path):
    folder = tmp_path / "checkpoints"
    save_as_before(folder, on_host(round=5))
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        (restored,) = checkpoints.restore(template(), NUM_CLIENTS, jax.devices()[:3])
        assert_same(to_host(restored.state, NUM_CLIENTS), on_host(round=5))
        assert restored.notes == {"rows": [1]}
        with pytest.raises(UserError, match="is of another model, method or number of clients"):
            checkpoints.restore(template(width=4), NUM_CLIENTS, jax.devices()[:3])
        # The next one is in the new layout, and the earlier one remains.
        state = to_devices(on_host(round=6), template(), jax.devices()[:1])
        checkpoints.save(state, NUM_CLIENTS)
        found = checkpoints.restore(template(), NUM_CLIENTS, jax.devices()[:2], all_of_them=True)
    assert [int(one.state.round) for one in found] == [6, 5]
    for one in found:
        assert_same(to_host(one.state, NUM_CLIENTS).clients, on_host().clients)


def test_arrays_with_other_names_are_of_another_model(tmp_path):
    """Also if their shapes are those of the run, in the same order."""
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        checkpoints.save(to_devices(on_host(), template(), jax.devices()[:1]), NUM_CLIENTS)
        server = {"v": template().server["w"], "count": template().server["count"]}
        like = template()._replace(server=server)
        with pytest.raises(UserError, match="is of another model"):
            checkpoints.restore(like, NUM_CLIENTS, jax.devices()[:1])


def truncate(path: pathlib.Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def fill_with_zeros(path: pathlib.Path):
    path.write_bytes(bytes(path.stat().st_size))


def flip_a_bit(path: pathlib.Path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


DAMAGES = [truncate, fill_with_zeros, flip_a_bit, pathlib.Path.unlink]


@pytest.fixture
def hook(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # which restoring replaces


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("which", ["*", "state/manifest*", "state/_METADATA", "d/*", "notes/m*"])
def test_a_damaged_checkpoint_is_renamed(folder, which, damage, hook, capsys):
    files = [path for path in (folder / "6").rglob(which) if path.is_file()]
    assert files, "Orbax keeps other files now; name those instead"
    for path in files:
        damage(path)
    restored = restore(folder)
    said = capsys.readouterr().err
    if said:
        assert_same(to_host(restored, NUM_CLIENTS), on_host(round=5))
        assert said.startswith("warning: the checkpoint of round 6 is damaged (")
        assert said.count("\n") == 1 and str(folder / "6.damaged") in said
        assert sorted(path.name for path in folder.iterdir()) == ["5", "6.damaged"]
    else:  # what is damaged was not needed
        assert which != "*"
        assert_same(to_host(restored, NUM_CLIENTS), on_host(round=6))


def test_where_all_are_damaged_the_newest_is_named(folder, hook):
    for path in folder.rglob("d/*"):
        fill_with_zeros(path)
    with pytest.raises(UserError, match="round 6 cannot be used .*start again") as refusal:
        restore(folder)
    assert str(folder) in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_checkpoint_follows_one_that_was_renamed(folder, hook, capsys):
    for path in (folder / "6").rglob("d/*"):
        fill_with_zeros(path)
    checkpoints = Checkpoints(folder)
    (restored,) = checkpoints.restore(template(), NUM_CLIENTS, jax.devices()[:2])
    state = restored.state._replace(round=jnp.int32(6))
    checkpoints.save(state, NUM_CLIENTS, {"rows": [1]})
    checkpoints.close()
    assert int(restore(folder).round) == 6
    assert checkpoint.newest_notes(folder.parent)["rows"] == [1]


def test_the_newest_is_read_and_the_oldest_gone(saved):
    assert_same(to_host(restore(saved), NUM_CLIENTS), on_host(round=6))
    assert sorted(path.name for path in saved.iterdir()) == ["5", "6"]


def test_the_one_before_serves_when_the_newest_is_removed(folder):
    shutil.rmtree(folder / "6")
    assert int(restore(folder).round) == 5


def test_another_models_shapes_are_refused(saved):
    with pytest.raises(UserError, match="round 6") as refusal:
        restore(saved, like=template(width=4))
    assert str(saved) in str(refusal.value)


def test_another_methods_arrays_are_refused(saved):
    with pytest.raises(UserError, match="round 6"):
        restore(saved, like=template()._replace(server=()))


def test_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in .*without --resume"):
        restore(tmp_path / "checkpoints")


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match="checkpoints"):
        restore(tmp_path / "checkpoints")


def test_replicated_arrays_come_back_on_every_device(saved):
    state = restore(saved, devices=4)
    mesh = mapping.local_mesh(jax.devices()[:4])
    assert state.server["w"].sharding.device_set == set(mesh.devices)
