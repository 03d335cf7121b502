"""Running statistics of batch normalization in several methods.

The file of each method compares rounds with batch normalization with a plain loop.
"""

import batch_norm
import federation
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain
import pytest

from pfljax import core
from pfljax.algorithms import ALGORITHMS
from pfljax.core import params
from pfljax.engine import sampling
from pfljax.ops import averaging


def statistics_in(tree):
    """The running statistics, whatever holds the model."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [leaf for path, leaf in leaves if getattr(path[-1], "key", "") in ("mean", "var")]


@pytest.mark.parametrize(
    "name",
    [
        *("fedavg", "scaffold", "fedper", "fedcac", "fedcp", "fedem", "fedgen", "fedpac"),
        *("fedrod", "gpfl", "fedas", "fml"),
    ],
)
def test_a_server_optimizer_never_moves_statistics(name):
    settings = {"generator_steps": 1} if name == "fedgen" else {}
    by_optimizer = []
    for optimizer in (averaging.PLAIN, optax.adam(0.3), optax.sgd(3.0, momentum=0.9)):
        algorithm = ALGORITHMS[name](
            batch_norm.TASK, batch_norm.LOCAL, server_optimizer=optimizer, **settings
        )
        if not by_optimizer:
            server, _, output = batch_norm.one_client_update(algorithm, 0)
        server = algorithm.init_server(federation.examples().population(), jax.random.key(0))
        each = jax.tree.map(lambda leaf: leaf[None], output.each)
        cohort = core.Cohort(jnp.zeros(1, jnp.int32), jnp.full(1, 11), batch_norm.CLIENTS)
        context = core.Context(jax.random.key(0), jnp.int32(0), jnp.int32(1))
        moved = algorithm.server_update(server, core.Uploads(output.sum, each), cohort, context)
        by_optimizer.append(getattr(moved, "average", moved).params)
    average, *others = map(statistics_in, by_optimizer)
    assert len(average) == 2
    for other in others:
        federation.assert_close(other, average)
    for other in by_optimizer[1:]:
        assert federation.differ(other, by_optimizer[0])


def test_weight_decay_and_clipping_leave_statistics_alone():
    examples = jax.tree.map(jnp.asarray, federation.examples())
    context = core.Context(jax.random.key(0), jnp.int32(0), jnp.int32(1))
    task, local = batch_norm.TASK, batch_norm.LOCAL
    model = task.init(jax.random.key(0))
    shifted = jax.tree.map(lambda leaf: leaf + 50, params.split_params(model, task.is_statistic)[0])
    far = params.replace_params(model, shifted)

    def trained(optimizer, anchor, client):
        rule = core.pulled_towards(task.loss, anchor, 1.0)
        data = examples.of_client(jnp.int32(client))
        return core.descend(
            rule, model, (), data, context, local, optimizer=optimizer, epochs=1
        ).params

    x, _ = plain.examples(1)  # one batch
    decayed = trained(optax.adamw(0.1, weight_decay=1.0), model, client=1)
    federation.assert_close(plain.statistics(decayed), plain.observed(model, jnp.float32(x)))
    # A pull towards a model with other statistics must not use up the norm that clipping allows.
    clipped = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1))
    federation.assert_close(trained(clipped, far, 0), trained(clipped, model, 0))


def small_clients():
    """Four clients that fit into one batch of four."""
    sizes = np.array([3, 2, 4, 3])
    whole = federation.examples()
    inputs, targets = (leaf[: sizes.sum()] for leaf in (whole.inputs, whole.targets))
    return federation.examples_of(inputs, targets, sizes, num_classes=3)


@pytest.mark.slow  # Each `NAME_test.py` has partial batches and chunks, and a plain loop.
@pytest.mark.parametrize(
    "name",
    [
        *("fedavg", "scaffold", "ditto", "apfl", "fedrep", "fedbabu", "perfedavg", "pfedme"),
        *("fedala", "fedem", "fedfomo", "fedpac", "fedkd"),
    ],
)
def test_methods_keep_running_statistics_of_the_real_examples(name):
    """Running statistics move, whatever the padding of a batch and of a chunk."""
    plan = sampling.CohortPlan(num_clients=4, size=4)

    def outcome(*, batch_size=4, **options):
        task = federation.task("mlp_bn")
        local = federation.local_training(
            shuffle=False, batch_size=batch_size, observe=task.observe
        )
        # The examples of an adaptation step depend on the size of a batch.
        settings = {"adaptation_steps": 0} if name == "perfedavg" else {}
        algorithm = ALGORITHMS[name](task, local, **settings)
        return federation.run(algorithm, data=small_clients(), plan=plan, score=task, **options)

    tight, padded = outcome(), outcome(batch_size=11, devices=2, chunk=2)
    federation.assert_close(padded.server, tight.server, tolerance=2e-5)
    federation.assert_close(padded.clients, tight.clients, tolerance=2e-5)
    federation.assert_close(padded.scores, tight.scores, tolerance=1e-4)
    for leaf in jax.tree.leaves((tight.server, tight.clients, tight.scores, tight.metrics)):
        assert np.all(np.isfinite(leaf))
    statistics = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path((tight.server, tight.clients))
        if jax.tree_util.keystr(path[-1:]) == "['var']"
        and ".initial[" not in jax.tree_util.keystr(path)  # FedFomo's, with which clients begin
    ]
    assert statistics and all(np.max(np.abs(leaf - 1)) > 1e-2 for leaf in statistics)
