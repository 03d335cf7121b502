"""A language task scored block by block gives the numbers of the whole batch, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import models, tasks
from pfljax.core import Batch

TEXTS, LENGTH, IDS = 5, 4, 7


def network(name="lstm_lm", vocabulary=IDS, length=LENGTH, **arguments):
    sizes = {"embedding": 3, "widths": (4,)} | arguments
    return models.MODELS[name]((length,), vocabulary, vocabulary=vocabulary, **sizes)


def batch_of(texts, length, vocabulary):
    draw = np.random.default_rng(0)
    ids = draw.integers(1, vocabulary, (texts, length + 1)).astype(np.int32)
    targets = np.where(np.arange(length) < draw.integers(1, length + 1, (texts, 1)), ids[:, 1:], 0)
    return Batch(ids[:, :-1], jnp.asarray(targets), jnp.arange(texts) < texts - 1)


def numbers(task, params, batch):
    """Losses with and without training mode, the gradient and the metrics."""
    key = jax.random.key(0)
    return (
        task.losses(params, batch, key),
        task.losses(params, batch, key, train=False),
        jax.value_and_grad(task.loss)(params, batch, key),
        task.evaluate(params, batch, key),
    )


@pytest.mark.parametrize(
    "block_size", [2, 9, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3, 5))]
)
def test_blocks_give_the_numbers_of_the_whole_batch(block_size):
    model, batch = network(), batch_of(TEXTS, LENGTH, IDS)
    params = model.init(jax.random.key(1))
    whole = tasks.next_token(model, num_classes=IDS)
    found = numbers(tasks.next_token(model, num_classes=IDS, block_size=block_size), params, batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        found,
        numbers(whole, params, batch),
    )
    of_outputs = whole.metrics(whole.predict(params, batch.inputs), batch)
    for name, value in of_outputs.items():
        np.testing.assert_allclose(found[-1][name], value, rtol=1e-5)
    assert found[-1]["count"] == np.count_nonzero(batch.targets[:-1])


@pytest.mark.parametrize("gradient", [False, True])
def test_logits_of_no_more_than_a_block_exist(gradient):
    """Of 32 texts with 20 tokens each of a vocabulary of 2,000, in float32."""
    texts, length, vocabulary = 32, 20, 2000
    model, batch = (
        network(vocabulary=vocabulary, length=length),
        batch_of(texts, length, vocabulary),
    )
    params, key = jax.eval_shape(model.init, jax.random.key(0)), jax.random.key(0)

    def temporary_bytes(block_size):
        task = tasks.next_token(model, num_classes=vocabulary, block_size=block_size)
        function = jax.grad(task.loss) if gradient else task.evaluate
        compiled = jax.jit(function).lower(params, batch, key).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    logits = 4 * texts * length * vocabulary
    whole, blocks = temporary_bytes(texts), temporary_bytes(2)
    assert whole > logits
    assert blocks < logits / 4


def test_a_small_vocabulary_is_computed_in_one_block():
    """So that the programs of character models stay as they were."""
    model, batch = network(), batch_of(TEXTS, LENGTH, IDS)
    task, params = tasks.next_token(model, num_classes=IDS), model.init(jax.random.key(0))
    one = tasks.next_token(model, num_classes=IDS, block_size=TEXTS)
    programs = [
        str(jax.make_jaxpr(jax.grad(each.loss))(params, batch, jax.random.key(0)))
        for each in (task, one)
    ]
    assert programs[0] == programs[1]
    in_two = tasks.next_token(model, num_classes=IDS, block_size=3)
    program = str(jax.make_jaxpr(jax.grad(in_two.loss))(params, batch, jax.random.key(0)))
    assert "remat" in program and "remat" not in programs[0]
