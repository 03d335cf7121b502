"""Adapters of Transformers that add tokens: to those of the input, or to keys and values."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pfljax.models.adapters.overlay import Kind
from pfljax.models.attention import AttentionProduct, Tokens
from pfljax.models.layers import uniform_by_fan_in

_TRANSFORMERS = "a Transformer, whose tokens are the outputs of `Tokens`"


def _is_tokens(layer):
    return layer.type is Tokens


def _insert(prompts, call, args):
    """Returns the tokens and their mask with prompts `[P, d]` among each example's tokens."""
    x, mask = call(*args)
    after = args[2] if len(args) > 2 else 0
    rows = jnp.broadcast_to(prompts.astype(x.dtype), (x.shape[0], *prompts.shape))
    if mask is not None:
        seen = jnp.ones((mask.shape[0], prompts.shape[0]), bool)
        mask = jnp.concatenate([mask[:, :after], seen, mask[:, after:]], axis=1)
    return jnp.concatenate([x[:, :after], rows, x[:, after:]], axis=1), mask


def prompt(*, tokens: int) -> Kind:
    """Trained rows among the embedded tokens of every example.

        x = (x_1, ..., x_a, p_1, ..., p_P, x_{a+1}, ..., x_T),   p normal, with deviation 0.02

    All blocks have `P + T` tokens; the features are those of the last `T`. The network determines
    `a`, 0 for all but the names of classes in `two_tower`, whose first token starts a sequence.

    Args:
      tokens: Number `P` of rows.

    References:
      Lester, Al-Rfou, Constant, "The Power of Scale for Parameter-Efficient Prompt Tuning", 2021,
      https://arxiv.org/abs/2104.08691.
      Jia, Tang, Chen, Cardie, Belongie, Hariharan, Lim, "Visual Prompt Tuning", 2022,
      https://arxiv.org/abs/2203.12119.
      Zhou, Yang, Loy, Liu, "Learning to Prompt for Vision-Language Models", 2022,
      https://arxiv.org/abs/2109.01134.
    """

    def init(key, layer):
        x, _ = layer.output
        return {"prompt": 0.02 * jax.random.normal(key, (tokens, x.shape[-1]), x.dtype)}

    def apply(arrays, call, args):
        return _insert(arrays["prompt"], call, args)

    return Kind(("prompt",), _is_tokens, init, apply, _TRANSFORMERS, is_prompt=True)


def p_tuning(*, tokens: int, width: int) -> Kind:
    """Rows before the embedded tokens, computed by a network from trained inputs.

        p = relu(relu(E W_1 + b_1) W_2 + b_2) W_3 + b_3,   E [P, d] normal

    Args:
      tokens: Number `P` of rows.
      width: Number of hidden units of the network.

    References:
      Liu, Zheng, Du, Ding, Qian, Yang, Tang, "GPT Understands, Too", 2021,
      https://arxiv.org/abs/2103.10385 (with an LSTM before the network, which other libraries
      leave out too).
    """
    names = (
        "encoder_embedding",
        *(f"encoder_{x}_{i}" for i in (1, 2, 3) for x in ("kernel", "bias")),
    )

    def init(key, layer):
        x, _ = layer.output
        size, own = x.shape[-1], jax.random.split(key, 7)
        arrays = {"encoder_embedding": jax.random.normal(own[0], (tokens, size), x.dtype)}
        for number, (inputs, outputs) in enumerate(((size, width), (width, width), (width, size))):
            draw = uniform_by_fan_in(inputs)
            kernel, bias = own[1 + 2 * number], own[2 + 2 * number]
            arrays[f"encoder_kernel_{number + 1}"] = draw(kernel, (inputs, outputs), x.dtype)
            arrays[f"encoder_bias_{number + 1}"] = draw(bias, (outputs,), x.dtype)
        return arrays

    def apply(arrays, call, args):
        rows = arrays["encoder_embedding"]
        for number in (1, 2, 3):
            rows = rows @ arrays[f"encoder_kernel_{number}"] + arrays[f"encoder_bias_{number}"]
            rows = jax.nn.relu(rows) if number < 3 else rows
        return _insert(rows, call, args)

    return Kind(names, _is_tokens, init, apply, _TRANSFORMERS)


def prefix(*, tokens: int) -> Kind:
    """Trained keys and values before those of the tokens, in each attention.

        attention(q, (k'_1, ..., k'_P, k), (v'_1, ..., v'_P, v)),   k' and v' normal

    Args:
      tokens: Number `P` of keys and values.

    References:
      Li, Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", 2021,
      https://arxiv.org/abs/2101.00190 (without the network that generates them in training).
    """
    names = ("prefix_key", "prefix_value")

    def init(key, layer):
        _, like, *_ = layer.inputs
        shape, keys = (tokens, *like.shape[2:]), jax.random.split(key)
        return {
            name: jax.random.normal(own, shape, like.dtype)
            for name, own in zip(names, keys, strict=True)
        }

    def apply(arrays, call, args):
        query, *keys_and_values, mask, bias = args
        longer = [
            jnp.concatenate(
                [jnp.broadcast_to(rows.astype(x.dtype), (x.shape[0], *rows.shape)), x], axis=1
            )
            for rows, x in zip((arrays[name] for name in names), keys_and_values, strict=True)
        ]
        if mask is not None:
            mask = jnp.pad(mask, ((0, 0), (tokens, 0)), constant_values=True)
        if bias is not None:
            bias = jnp.pad(bias, ((0, 0), (0, 0), (0, 0), (tokens, 0)))
        return call(query, *longer, mask, bias)

    def fits(layer):
        return layer.type is AttentionProduct

    return Kind(names, fits, init, apply, "the attention of a Transformer")
