"""Networks for numeric inputs, time series and ratings."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from pfljax.errors import UserError
from pfljax.models.ids import Embedding
from pfljax.models.layers import BatchNorm, Dense, TimeConv, max_pool_time
from pfljax.models.model import Model, from_flax


class Flatten(nn.Module):
    """`[B, ...] -> [B, d]`; no parameters."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0], -1)


class HiddenLayers(nn.Module):
    """Dense layers with ReLU after each: `[B, ...] -> [B, widths[-1]]`.

    Attributes:
      widths: The width of each layer.
      batch_norm: Whether to normalize before each ReLU.
    """

    widths: tuple[int, ...]
    batch_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for width in self.widths:
            x = Dense(width)(x)
            x = nn.relu(BatchNorm()(x) if self.batch_norm else x)
        return x


def logistic(input_shape: tuple[int, ...], num_classes: int) -> Model:
    """Multinomial logistic regression: a head on the flat input, and no body.

    For a regression, it is linear regression. 784 inputs, 10 classes: 7,850 parameters.
    """
    return from_flax(Flatten(), Dense(num_classes), input_shape)


def mlp(input_shape: tuple[int, ...], num_classes: int, widths: tuple[int, ...] = (100,)) -> Model:
    """Dense layers with ReLU, then a linear head.

    784-100-10: 79,510 parameters, 78,500 of them in the body.
    """
    return from_flax(HiddenLayers(tuple(widths)), Dense(num_classes), input_shape)


def mlp_bn(
    input_shape: tuple[int, ...], num_classes: int, widths: tuple[int, ...] = (100,)
) -> Model:
    """The MLP with batch normalization before each ReLU.

    784-100-10: 79,910 entries, of which 200 are running statistics.
    """
    return from_flax(HiddenLayers(tuple(widths), batch_norm=True), Dense(num_classes), input_shape)


def amazon_mlp(input_shape: tuple[int, ...], num_classes: int) -> Model:
    """PFLlib's MLP for the 5,000 word counts of Amazon Review: `[B, ...] -> [B, 100]`.

    5000-1000-500-100-2: 5,551,802 parameters.
    """
    return mlp(input_shape, num_classes, (1000, 500, 100))


class TimeConvolutions(nn.Module):
    """Convolutions over time with ReLU and pooling, dense layers: `[B, T, c] -> [B, widths[-1]]`.

    features: Number of channels of each convolution.
    size: The length of the kernels.
    widths: The widths of the dense layers.
    """

    features: tuple[int, ...]
    size: int
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for features in self.features:
            x = nn.relu(max_pool_time(TimeConv(features, self.size)(x)))
        return HiddenLayers(self.widths)(x)


def har_cnn(
    input_shape: tuple[int, ...],
    num_classes: int,
    features: tuple[int, ...] = (32, 64),
    size: int = 9,
    widths: tuple[int, ...] = (1024, 512),
) -> Model:
    """Convolutions over time for windows of sensor data: `[B, T, c] -> [B, 512]`.

    Conv 9 32, pool, conv 9 64, pool, dense 1024, 512. The head is the last layer; in PFLlib it
    consists of all three dense layers. 128 steps, 9 channels, 6 classes: 2,253,958 parameters.
    """
    if not isinstance(input_shape, tuple) or len(input_shape) != 2:
        raise UserError(
            f"The model har_cnn reads windows [time, channels], but an example has the shape "
            f"{input_shape}; choose another model, such as mlp."
        )
    steps = input_shape[0]
    for _ in features:
        steps = (steps - size + 1) // 2
    if steps < 1:
        raise UserError(
            f"Windows of {input_shape[0]} steps are too short for the model har_cnn; lower "
            "config.model.size, or choose another model, such as mlp."
        )
    return from_flax(
        TimeConvolutions(tuple(features), size, tuple(widths)), Dense(num_classes), input_shape
    )


_SMALL = nn.initializers.normal(0.1)


class Items(nn.Module):
    """Vector and bias of the item in the last column: `[B, columns] -> [B, width + 1]`.

    Attributes:
      items: Number of items.
      width: The width of a vector.
    """

    items: int
    width: int

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        vectors = Embedding(self.items, self.width, _SMALL, name="vectors")
        biases = Embedding(self.items, 1, nn.initializers.zeros, name="biases")
        return jnp.concatenate([vectors(ids[:, -1]), biases(ids[:, -1])], axis=-1)


class User(nn.Module):
    """The rating of one user: `[B, width + 1] -> [B, 1]`.

    `<vector, item's vector> + item's bias + bias`
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        vector = self.param("vector", _SMALL, (x.shape[-1] - 1, 1))
        bias = self.param("bias", nn.initializers.zeros, (1,))
        return x[:, :-1] @ vector + x[:, -1:] + bias


class UsersAndItems(nn.Module):
    """Element-wise product of the two vectors, and the sum of biases: `[B, 2] -> [B, width + 1]`.

    Attributes:
      users: Number of users.
      items: Number of items.
      width: The width of a vector.
    """

    users: int
    items: int
    width: int

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        of_user = Embedding(self.users, self.width, _SMALL, name="user_vectors")(ids[:, 0])
        user_bias = Embedding(self.users, 1, nn.initializers.zeros, name="user_biases")(ids[:, 0])
        of_item = Items(self.items, self.width, name="items")(ids)
        vectors = of_user * of_item[:, :-1]
        return jnp.concatenate([vectors, of_item[:, -1:] + user_bias], axis=-1)


class Total(nn.Module):
    """Weighted sum of the entries of a product, with weights initialized to 1."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        weights = self.param("weights", nn.initializers.ones, (x.shape[-1], 1))
        return x @ weights + self.param("bias", nn.initializers.zeros, (1,))


def matrix_factorization(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    vocabulary: int | tuple[int, int],
    width: int = 16,
    user_table: bool = False,
) -> Model:
    """Matrix factorization of ratings, for examples `[user, item]` or `[item]`.

        rating = <u, v_item> + b_item + b

    The items' vectors are the body, and the client's vector u and bias b are the head, so that
    methods with a personalized head, such as FedPer, keep the user's vector private. With one model
    for all clients, as in FedAvg, u is an average user; with `user_table=True`, the body contains a
    vector for each user instead, and the head consists of weights of the entries, initialized to 1.

    610 users, 9,724 items: 165,325 parameters, 17 of them the head; with `user_table` 175,696.

    References:
      Koren, Bell, Volinsky, "Matrix Factorization Techniques for Recommender Systems", 2009,
      https://doi.org/10.1109/MC.2009.263.
      Singhal, Sidahmed, Garrett, Wu, Rush, Prakash, "Federated Reconstruction: Partially Local
      Federated Learning", 2021, https://arxiv.org/abs/2102.03448 (private users).
    """
    sizes = (vocabulary,) if isinstance(vocabulary, int) else tuple(vocabulary)
    if input_shape != (len(sizes),) or len(sizes) not in (1, 2) or num_classes != 1:
        raise UserError(
            "The model matrix_factorization predicts one number for the ids of a user and an item, "
            f"but an example has the shape {input_shape}, ids up to {sizes} and {num_classes} "
            "outputs; choose another model."
        )
    if not user_table:
        return from_flax(Items(sizes[-1], width), User(), input_shape, reads_ids=True)
    if len(sizes) == 1:
        raise UserError("config.model.user_table needs examples [user, item], but these are items.")
    return from_flax(UsersAndItems(*sizes, width), Total(), input_shape, reads_ids=True)
