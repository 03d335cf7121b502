"""Variants in one program are the runs of their own that they stand for."""

import federation
import jax
import numpy as np
import pytest

from pfljax.engine import mapping, vectorized
from pfljax.training.run.checkpoint import to_host
from pfljax.training.run.runtime import CompilationCounter

SEEDS, LAMS = (0, 3, 3), np.array([0.1, 0.1, 2.0], np.float32)


def build(together):
    return vectorized.build_vectorized(
        lambda values: federation.make("ditto", **values),
        federation.task(),
        federation.PLAN,
        clients_per_chunk=1,
        eval_clients_per_chunk=1,
        eval_batch_size=4,
        rounds_per_call=federation.NUM_ROUNDS,
        together=together,
        devices=jax.devices()[:2],
    )


@pytest.mark.parametrize("together", [1, 3])
def test_seeds_and_hyperparameters_in_one_program_equal_separate_runs(together):
    programs, values = build(together), {"lam": LAMS}
    examples = mapping.replicate(federation.examples(), jax.devices()[:2])
    keys = jax.numpy.stack([jax.random.key(seed) for seed in SEEDS])
    states = programs.start(examples, keys, values)
    total = np.int32(federation.NUM_ROUNDS)
    states, metrics = programs.run_rounds(states, examples, total, total, values)
    scores = programs.evaluate(states, examples, total, values)
    counter = CompilationCounter()
    programs.evaluate(states, examples, total, {"lam": 2 * LAMS})
    counter.close()
    assert counter.programs == 0, "another value is another argument, not another program"
    for index, (seed, lam) in enumerate(zip(SEEDS, LAMS, strict=True)):
        alone = federation.run(federation.make("ditto", lam=float(lam)), devices=2, seed=seed)
        ours = to_host(vectorized.unstack(states, index), examples.num_clients)
        federation.assert_close(ours.clients, alone.clients)
        federation.assert_close(ours.server, alone.server)
        picked = jax.tree.map(lambda leaf, i=index: np.asarray(leaf[i]), (scores, metrics))
        federation.assert_close(picked, (alone.scores, alone.metrics), tolerance=1e-5)
    first, second = (vectorized.unstack(states, index).server.params for index in (0, 1))
    assert federation.differ(first, second), "the seeds differ"


def test_states_are_stacked_and_taken_apart_again():
    examples = mapping.replicate(federation.examples(), jax.devices()[:2])
    keys = jax.numpy.stack([jax.random.key(seed) for seed in SEEDS])
    states = build(1).start(examples, keys, {"lam": LAMS})
    again = vectorized.stack([vectorized.unstack(states, index) for index in range(3)])
    hosts = [jax.tree.map(np.asarray, tree._replace(key=())) for tree in (states, again)]
    jax.tree.map(np.testing.assert_array_equal, *hosts)
