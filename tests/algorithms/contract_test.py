"""What the engine promises of every method of the table; a new method is tested by being listed."""

import functools

import federation
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax.algorithms import ALGORITHMS
from pfljax.engine import mapping
from pfljax.engine.clients.on_device import to_host
from pfljax.engine.programs import build_init, build_rounds
from pfljax.engine.reference import reference_round
from pfljax.training.run.checkpoint import Checkpoints
from pfljax.training.run.runtime import CompilationCounter


@pytest.fixture(scope="module", params=ALGORITHMS)
def name(request):
    """A method; all its tests run before those of the next, and its programs are dropped then."""
    yield request.param
    on_one_device.cache_clear()
    on_two_devices.cache_clear()
    jax.clear_caches()


def run(name, **options):
    return federation.run(federation.make(name), score=federation.task_for(name), **options)


@functools.cache
def on_one_device(name):
    """The outcome of a method on one device, one client at a time; shared by the tests."""
    return run(name)


@functools.cache
def on_two_devices(name):
    """The programs of a method on two devices, shared by the tests: `(start, step, examples)`."""
    devices = jax.devices()[:2]
    algorithm = federation.make(name)
    step = build_rounds(
        algorithm, federation.PLAN, clients_per_chunk=1, rounds_per_call=2, devices=devices
    )
    examples = mapping.replicate(federation.examples(), devices)
    return build_init(algorithm, devices=devices), step, examples


def test_engine_equals_the_plain_loop(name):
    algorithm = federation.make(name)
    examples = jax.tree.map(jnp.asarray, federation.examples())
    start = build_init(algorithm, devices=jax.devices()[:1])
    state = start(federation.examples(), jax.random.key(0))
    state = state._replace(clients=[None] * examples.num_clients)
    with jax.debug_key_reuse(True):
        for _ in range(federation.NUM_ROUNDS):
            plan, length = federation.PLAN, federation.NUM_ROUNDS
            state = reference_round(algorithm, plan, state, examples, length)
    outcome = on_one_device(name)
    federation.assert_close(outcome.server, jax.tree.map(np.asarray, state.server))
    for i, client in enumerate(state.clients):
        if client is not None:
            own = jax.tree.map(lambda leaf, i=i: leaf[i], outcome.clients)
            federation.assert_close(own, jax.tree.map(np.asarray, client))


def test_devices_chunks_and_padding_change_nothing(name):
    # Five clients on four devices in chunks of two: eight places, three of them padding.
    # That the server's state is the same on all four devices, `federation.run` asserts.
    spread = run(name, devices=4, chunk=2)
    outcome = on_one_device(name)
    federation.assert_close(outcome.server, spread.server)
    federation.assert_close(outcome.clients, spread.clients)
    federation.assert_close(outcome.scores, spread.scores, tolerance=1e-5)
    for metric in set(outcome.metrics) - {"slots"}:
        federation.assert_close(outcome.metrics[metric], spread.metrics[metric])


def test_training_helps_and_stays_finite(name):
    outcome = on_one_device(name)
    assert np.all(outcome.metrics["cohort"] == federation.PLAN.size)
    found = (outcome.server, outcome.clients, outcome.metrics, outcome.scores)
    for leaf in jax.tree.leaves((*found, outcome.untrained_scores)):
        assert np.all(np.isfinite(leaf))
    before = outcome.untrained_scores["personal"]["test"]["accuracy"].sum()
    assert outcome.scores["personal"]["test"]["accuracy"].sum() > before


def test_one_program_serves_any_number_of_rounds(name):
    start, step, examples = on_two_devices(name)
    state = start(examples, jax.random.key(0))
    state, _ = step(state, examples, np.int32(5), np.int32(2))
    counter = CompilationCounter()
    for now in (1, 2):
        state, _ = step(state, examples, np.int32(5), np.int32(now))
    counter.close()
    assert counter.programs == 0
    assert int(state.round) == 5


def test_state_keeps_its_form_and_the_callers_arrays_survive(name):
    start, step, examples = on_two_devices(name)
    key = jax.random.key(0)
    state = start(examples, key)
    before = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    after, _ = step(state, examples, np.int32(1), np.int32(1))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == before
    assert not examples.inputs.is_deleted() and not key.is_deleted()
    private = jax.tree.leaves(state.clients)
    assert all(leaf.is_deleted() for leaf in private), "the round copies the state"


def test_resuming_is_exact_and_works_on_other_devices(name, tmp_path):
    start, step, examples = on_two_devices(name)
    devices, count = jax.devices()[:2], examples.num_clients
    state = start(examples, jax.random.key(0))
    state, _ = step(state, examples, np.int32(3), np.int32(1))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, count)
    saved = to_host(state, count)
    straight, _ = step(state, examples, np.int32(3), np.int32(2))

    (restored,) = checkpoints.restore(start(examples, jax.random.key(1)), count, devices)
    resumed, _ = step(restored.state, examples, np.int32(3), np.int32(2))
    jax.tree.map(np.testing.assert_array_equal, to_host(straight, count), to_host(resumed, count))

    three = jax.devices()[:3]
    like = build_init(federation.make(name), devices=three)(
        mapping.replicate(federation.examples(), three), jax.random.key(1)
    )
    (restored,) = checkpoints.restore(like, count, three)
    elsewhere = to_host(restored.state, count)
    jax.tree.map(np.testing.assert_array_equal, saved, elsewhere)
    checkpoints.close()
