"""Language modelling: at each position of a text the next token is predicted."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from pfljax.core import Task
from pfljax.models.ids import PADDING
from pfljax.models.model import Model
from pfljax.tasks.from_network import from_network, mean_loss

# Number of logits of a block where no block size is given: 16 MiB in float32.
_LOGITS_OF_BLOCK = 2**22


def next_token(model: Model, *, num_classes: int, block_size: int | None = None) -> Task:
    """Returns the task of predicting at every position of a text the token that follows.

        L(theta, batch) = mean over real examples of
            the mean over positions t with a target of -log softmax(f_theta(x_1 .. x_t))_{y_t}

    Targets are `[B, T]`, 0 where nothing follows. A text of which only one next token is predicted,
    as in LEAF's Shakespeare, is a `classification`.

    Training and evaluation compute the logits of some texts after those of others, so that of
    `[B, T, num_classes]` only a block `[block_size, T, num_classes]` exists at once; a gradient
    computes them a second time. A network with batch normalization trains without blocks, because
    it normalizes over the whole batch.

    Metrics: accuracy (the score) and loss, which count tokens.

    Args:
      model: Network of ids `[B, T]` with outputs `[B, T, num_classes]`.
      num_classes: Size of the vocabulary, the padding included.
      block_size: Number of texts whose logits exist at once; None for as many as have 4 million
        logits together, but at least one. Blocks are made equally large.

    Returns:
      The task.
    """

    def sums_of_texts(logits, targets):
        """Returns `{name: [B]}`, sums over the tokens of each text."""
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        real = (targets != PADDING).astype(losses.dtype)
        correct = jnp.argmax(logits, axis=-1) == targets
        tokens = {"accuracy": correct * real, "loss": losses * real, "count": real}
        return {name: jnp.sum(values, axis=-1) for name, values in tokens.items()}

    def losses_of_texts(sums):
        return sums["loss"] / jnp.maximum(sums["count"], 1)

    def over_batch(sums, mask):
        return {name: jnp.sum(values * mask) for name, values in sums.items()}

    def example_losses(logits, batch):
        return losses_of_texts(sums_of_texts(logits, batch.targets))

    def metrics(logits, batch):
        return over_batch(sums_of_texts(logits, batch.targets), batch.mask)

    whole = from_network(model, example_losses, metrics, score="accuracy", num_classes=num_classes)

    def num_blocks(targets):
        texts, length = targets.shape
        size = block_size or max(1, _LOGITS_OF_BLOCK // (length * num_classes))
        return -(-texts // size)

    def losses(params, batch, key, train=True):
        blocks = num_blocks(batch.targets)
        if blocks == 1 or (train and model.observe is not None):
            return whole.losses(params, batch, key, train)
        key = key if train else None
        features = whole.features(params, batch.inputs, None, key)

        @jax.checkpoint
        def sums(block, features, targets):
            own = None if key is None else jax.random.fold_in(key, block)
            return sums_of_texts(whole.head(params, features, None, own), targets)

        return losses_of_texts(_in_blocks(sums, blocks, features, batch.targets))

    def params_metrics(params, batch, key):
        blocks = num_blocks(batch.targets)
        if blocks == 1:
            return whole.evaluate(params, batch, key)
        features = whole.features(params, batch.inputs)

        def sums(block, features, targets):
            return sums_of_texts(whole.head(params, features), targets)

        return over_batch(_in_blocks(sums, blocks, features, batch.targets), batch.mask)

    return whole._replace(losses=losses, loss=mean_loss(losses), params_metrics=params_metrics)


def _in_blocks(
    function: Callable[..., dict[str, jax.Array]], num_blocks: int, *arrays: jax.Array
) -> dict[str, jax.Array]:
    """Applies a function of rows to blocks of rows, one block after the other.

    Args:
      function: `(block, *arrays) -> {name: [rows]}`, each row of which depends on that row alone;
        `block` is the number of the block, `[]` int32.
      num_blocks: Number of blocks, of equal size; the last one is filled up with zeros.
      *arrays: `[B, ...]` each.

    Returns:
      `{name: [B]}`.
    """
    rows = arrays[0].shape[0]
    size = -(-rows // num_blocks)

    def split(array):
        padded = jnp.pad(array, ((0, num_blocks * size - rows), *((0, 0),) * (array.ndim - 1)))
        return padded.reshape(num_blocks, size, *array.shape[1:])

    blocks = jnp.arange(num_blocks), *map(split, arrays)
    found = jax.lax.map(lambda block: function(*block), blocks)
    return jax.tree.map(lambda values: values.reshape(-1)[:rows], found)
