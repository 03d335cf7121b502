"""What the engine promises of every method of the registry; a new row is tested by being there.

The tests of a method share its programs: two devices, on each of which four slots in chunks of two
hold the shard of a cohort of five, so that three slots are padding.
"""

import functools
from typing import NamedTuple

import federation
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import core
from pfljax.algorithms import ALGORITHMS
from pfljax.engine import mapping
from pfljax.engine.clients.on_device import to_devices, to_host
from pfljax.engine.examples import Examples
from pfljax.engine.programs import Bound, build_evaluation, build_init, build_rounds
from pfljax.engine.reference import reference_round
from pfljax.training.run.checkpoint import Checkpoints
from pfljax.training.run.runtime import CompilationCounter

LENGTH = np.int32(federation.NUM_ROUNDS)


class Programs(NamedTuple):
    """The programs of a method, and what they are called with.

    Attributes:
      algorithm: The method.
      init: `(examples, key) -> state`.
      run_rounds: `(state, examples, num_rounds, rounds_now) -> (state, metrics)`.
      evaluate: `(state, examples, num_rounds) -> scores`.
      examples: The examples of all clients, on the devices.
      devices: The devices of the programs.
    """

    algorithm: core.Algorithm
    init: Bound
    run_rounds: Bound
    evaluate: Bound
    examples: Examples
    devices: list[jax.Device]

    def start(self, seed: int = 0) -> core.FederatedState:
        """Returns the state before the first round."""
        return self.init(self.examples, jax.random.key(seed))

    def run(self, state: core.FederatedState, rounds: int) -> tuple:
        """Returns the state after some more rounds, and their metrics."""
        return self.run_rounds(state, self.examples, LENGTH, np.int32(rounds))

    def scores(self, state: core.FederatedState) -> dict:
        """Returns the scores of all clients."""
        return jax.tree.map(np.asarray, self.evaluate(state, self.examples, LENGTH))


@pytest.fixture(scope="module", params=ALGORITHMS)
def name(request):
    """A method; all its tests run before those of the next, and its programs are dropped then."""
    yield request.param
    programs_of.cache_clear()
    trained.cache_clear()
    jax.clear_caches()


@functools.cache
def programs_of(name):
    """The programs of a method, shared by its tests."""
    algorithm, devices = federation.make(name), jax.devices()[:2]
    on_devices = {"clients_per_chunk": 2, "devices": devices}
    return Programs(
        algorithm,
        build_init(algorithm, devices=devices),
        build_rounds(
            algorithm, federation.PLAN, rounds_per_call=federation.NUM_ROUNDS, **on_devices
        ),
        build_evaluation(algorithm, federation.task_for(name), batch_size=4, **on_devices),
        mapping.replicate(federation.examples(), devices),
        devices,
    )


@functools.cache
def trained(name):
    """The state after all rounds, and their metrics; the tests only read it."""
    programs = programs_of(name)
    return programs.run(programs.start(), federation.NUM_ROUNDS)


def on_host(state):
    return to_host(state, len(federation.SIZES))


def test_engine_equals_the_plain_loop(name):
    programs, examples = programs_of(name), jax.tree.map(jnp.asarray, federation.examples())
    state = jax.device_put(programs.start()._replace(clients=()), jax.devices()[0])
    state = state._replace(clients=[None] * examples.num_clients)
    with jax.debug_key_reuse(True):
        for _ in range(federation.NUM_ROUNDS):
            state = reference_round(
                programs.algorithm, federation.PLAN, state, examples, federation.NUM_ROUNDS
            )
    found, metrics = trained(name)
    server = jax.tree.map(federation.same_on_every_device, found.server)
    federation.assert_close(server, jax.tree.map(np.asarray, state.server))
    clients = on_host(found).clients
    took_part = [i for i, client in enumerate(state.clients) if client is not None]
    assert len(took_part) >= federation.PLAN.size
    for i in took_part:
        own = jax.tree.map(lambda leaf, i=i: leaf[i], clients)
        federation.assert_close(own, jax.tree.map(np.asarray, state.clients[i]))
    assert np.all(metrics["cohort"] == federation.PLAN.size)
    assert np.all(metrics["slots"] > metrics["examples"])  # There is padding.


def test_training_helps_and_stays_finite(name):
    programs, (state, metrics) = programs_of(name), trained(name)
    before, after = programs.scores(programs.start()), programs.scores(state)
    host = on_host(state)
    for leaf in jax.tree.leaves((host.server, host.clients, metrics, before, after)):
        assert np.all(np.isfinite(leaf))
    accuracy = [found["personal"]["test"]["accuracy"].sum() for found in (before, after)]
    assert accuracy[1] > accuracy[0]


def test_one_program_serves_any_number_of_rounds(name):
    programs, (straight, _) = programs_of(name), trained(name)
    counter = CompilationCounter()
    state, _ = programs.run(programs.start(), 2)
    state, _ = programs.run(state, 1)
    jax.block_until_ready(state)
    counter.close()
    assert counter.programs == 0
    assert int(state.round) == federation.NUM_ROUNDS
    jax.tree.map(np.testing.assert_array_equal, on_host(state), on_host(straight))


def test_state_keeps_its_form_and_the_callers_arrays_survive(name):
    programs, key = programs_of(name), jax.random.key(0)
    state = programs.init(programs.examples, key)
    before = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    after, _ = programs.run(state, 1)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == before
    assert not programs.examples.inputs.is_deleted() and not key.is_deleted()
    private = jax.tree.leaves(state.clients)
    assert all(leaf.is_deleted() for leaf in private), "the round copies the state"


def test_resuming_is_exact_and_works_on_other_devices(name, tmp_path):
    programs, (straight, _) = programs_of(name), trained(name)
    count = programs.examples.num_clients
    state, _ = programs.run(programs.start(), 1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, count)
    saved = on_host(state)

    other = programs.start(seed=1)
    (restored,) = checkpoints.restore(other, count, programs.devices)
    resumed, _ = programs.run(restored.state, federation.NUM_ROUNDS - 1)
    jax.tree.map(np.testing.assert_array_equal, on_host(straight), on_host(resumed))

    three = jax.devices()[:3]
    like = to_devices(on_host(other), other, three)
    (restored,) = checkpoints.restore(like, count, three)
    jax.tree.map(np.testing.assert_array_equal, saved, on_host(restored.state))
    checkpoints.close()


@pytest.mark.slow  # `round_test.py` runs a method with every verb on several of them.
@pytest.mark.parametrize("devices, chunk", [(1, 1), (4, 2)])
def test_devices_and_chunks_change_nothing(name, devices, chunk):
    programs, (state, metrics) = programs_of(name), trained(name)
    other = federation.run(
        programs.algorithm, score=federation.task_for(name), devices=devices, chunk=chunk
    )
    host = on_host(state)
    federation.assert_close(host.server, other.server)
    federation.assert_close(host.clients, other.clients)
    federation.assert_close(programs.scores(state), other.scores, tolerance=1e-5)
    for metric in set(metrics) - {"slots"}:
        federation.assert_close(np.asarray(metrics[metric]), other.metrics[metric])
