"""Vectorized runs give the results of separate runs."""

import federation
import jax
import numpy as np
import pytest

from pfljax import models, tasks
from pfljax.algorithms.fedavg import fedavg
from pfljax.core import tree
from pfljax.engine import mapping, programs
from pfljax.engine.clients.on_device import to_host
from pfljax.models import adapters
from pfljax.training.run.runtime import CompilationCounter

SEEDS, LAMS = (0, 3, 3), np.array([0.1, 0.1, 2.0], np.float32)


def make(frozen, values, server_data):
    return programs.Method(federation.make("ditto", **values), federation.task())


def build(at_once):
    shared = {"vectorized": programs.Vectorized(at_once), "devices": jax.devices()[:2]}
    return (
        programs.init_program(make, **shared),
        programs.rounds_program(
            make,
            federation.PLAN,
            clients_per_chunk=1,
            rounds_per_call=federation.NUM_ROUNDS,
            **shared,
        ),
        programs.evaluation_program(make, batch_size=4, clients_per_chunk=1, **shared),
    )


@pytest.mark.parametrize("at_once", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_seeds_and_hyperparameters_in_one_program_equal_separate_runs(at_once):
    init, run_rounds, evaluate = build(at_once)
    inputs = programs.Inputs(values={"lam": LAMS})
    examples = mapping.replicate(federation.examples(), jax.devices()[:2])
    keys = jax.numpy.stack([jax.random.key(seed) for seed in SEEDS])
    states = init(examples, keys, inputs)
    total = np.int32(federation.NUM_ROUNDS)
    states, metrics = run_rounds(states, examples, total, total, inputs)
    scores = evaluate(states, examples, total, inputs)
    counter = CompilationCounter()
    evaluate(states, examples, total, programs.Inputs(values={"lam": 2 * LAMS}))
    counter.close()
    assert counter.programs == 0, "another value is another argument, not another program"
    for index, (seed, lam) in enumerate(zip(SEEDS, LAMS, strict=True)):
        alone = federation.run(federation.make("ditto", lam=float(lam)), devices=2, seed=seed)
        ours = to_host(programs.unstack(states, index), examples.num_clients)
        federation.assert_close(ours.clients, alone.clients)
        federation.assert_close(ours.server, alone.server)
        picked = jax.tree.map(lambda leaf, i=index: np.asarray(leaf[i]), (scores, metrics))
        federation.assert_close(picked, (alone.scores, alone.metrics), tolerance=1e-5)
    first, second = (programs.unstack(states, index).server.params for index in (0, 1))
    assert federation.differ(first, second), "the seeds differ"


def test_states_are_stacked_and_unstacked():
    examples = mapping.replicate(federation.examples(), jax.devices()[:2])
    keys = jax.numpy.stack([jax.random.key(seed) for seed in SEEDS])
    states = build(1)[0](examples, keys, programs.Inputs(values={"lam": LAMS}))
    again = programs.stack([programs.unstack(states, index) for index in range(3)])
    hosts = [jax.tree.map(np.asarray, tree._replace(key=())) for tree in (states, again)]
    jax.tree.map(np.testing.assert_array_equal, *hosts)


def test_frozen_parameters_are_arguments_of_the_programs():
    """A base of 100 MB: one copy on each device, and none in the text, the states or uploads."""
    devices = jax.devices()[:2]
    network = models.mlp((federation.NUM_FEATURES,), federation.NUM_CLASSES, widths=(5000, 5000))
    adapted = adapters.attach(network, adapters.lora(rank=1))
    task = tasks.classification(adapted, num_classes=federation.NUM_CLASSES)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    base = jax.tree.map(lambda leaf: np.full(leaf.shape, 1e-4, leaf.dtype), shapes)
    size = tree.num_bytes(base)
    assert size > 100e6
    before = sum(array.nbytes for array in jax.live_arrays())
    inputs = mapping.replicate(programs.Inputs(base), devices)
    assert sum(array.nbytes for array in jax.live_arrays()) - before <= size
    assert all(
        [shard.data.shape for shard in leaf.addressable_shards] == [leaf.shape] * 2
        for leaf in jax.tree.leaves(inputs)
    )

    def build(frozen, values, server_data):
        of_adapter = tasks.freeze(task, frozen, task.is_adapter)
        method = fedavg(of_adapter, federation.local_training(epochs=1))
        return programs.Method(method, of_adapter)

    init = programs.Bound(programs.init_program(build, devices=devices), inputs)
    run_rounds = programs.Bound(
        programs.rounds_program(
            build, federation.PLAN, clients_per_chunk=1, rounds_per_call=1, devices=devices
        ),
        inputs,
    )
    examples = mapping.replicate(federation.examples(), devices)
    state = init(examples, jax.random.key(0))
    assert tree.num_bytes(state.server) < size / 500
    size_of_state = tree.num_bytes(state.server)
    arguments = (state, examples, np.int32(1), np.int32(1))
    assert len(run_rounds.lower(*arguments).as_text()) < 5e6
    # With a constant inside, these would be 0.1 MB.
    plan = run_rounds.compile(*arguments).memory_analysis()
    assert plan.argument_size_in_bytes > tree.num_bytes(inputs.frozen)
    after, metrics = run_rounds(*arguments)
    assert np.isfinite(metrics["loss"][0])
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(inputs)), "never donated"
    assert tree.num_bytes(after.server) == size_of_state
