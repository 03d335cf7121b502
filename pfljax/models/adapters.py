"""Adapters: a few trained parameters beside a model that is frozen.

The frozen parameters are a part of the model's, and are given to it while programs are traced, so
that one copy serves all clients and is never a part of a client's state, of the optimizer's or of
what is uploaded.

References:
  Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2022,
  https://arxiv.org/abs/2106.09685.
  Jia, Tang, Chen, Cardie, Belongie, Hariharan, Lim, "Visual Prompt Tuning", 2022,
  https://arxiv.org/abs/2203.12119 (prompts of a vision Transformer).
  Zhou, Yang, Loy, Liu, "Learning to Prompt for Vision-Language Models", 2022,
  https://arxiv.org/abs/2109.01134 (prompts before the names of classes).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from pfljax.core import Params, Path
from pfljax.core.params import join_params, split_params
from pfljax.errors import UserError
from pfljax.models.attention import PromptPosition
from pfljax.models.model import Model


class Adapter(NamedTuple):
    """A model of which only an adapter is trained.

    Attributes:
      freeze: `params of the whole model -> frozen`, the part of them that is frozen.
      model: `frozen -> Model`, whose parameters are the adapter's and the head's.
    """

    freeze: Callable[[Params], Params]
    model: Callable[[Params], Model]


def lora(
    model: Model,
    *,
    rank: int,
    scale: float = 1.0,
    is_adapted: Callable[[Path], bool] = lambda path: True,
    is_trained: Callable[[Path], bool] | None = None,
) -> Adapter:
    """Adds a low-rank update to the matrices of a frozen model.

        y = x W + b + scale (x A) B,   A [in, rank] uniform in +-1/sqrt(in), B [rank, out] zero

    The product `A B` is never formed: clients trained at once share `x W`, and each adds two thin
    separate products.

    Args:
      model: A network without batch normalization.
      rank: Rank of an update.
      scale: Factor on an update.
      is_adapted: `path of a layer -> bool`; only layers with a matrix can be adapted, and layers
        with trained arrays are left out.
      is_trained: `path of an array -> bool`, arrays that are trained whole beside the adapter;
        None means the head.

    Returns:
      The adapter. Its parameters have the arrays `lora_a` and `lora_b` at the paths of the adapted
      layers.

    Raises:
      UserError: no layer can be adapted, or the model has batch normalization.
    """
    _require_no_statistics(model)
    is_trained = is_trained or model.is_head
    shapes = jax.eval_shape(model.init, jax.eval_shape(jax.random.key, 0))
    kernels = {}
    for path in model.layers:
        kernel = functools.reduce(lambda node, name: node[name], path, shapes).get("kernel")
        whole = is_trained((*path, "kernel"))
        if kernel is not None and kernel.ndim == 2 and is_adapted(path) and not whole:
            kernels[path] = kernel
    if not kernels:
        known = ", ".join("/".join(path) for path in model.layers)
        raise UserError(
            f"No layer of the model has a matrix to adapt; its layers are {known}. Name some in "
            "config.adapter.layers, or another model."
        )

    def init(key):
        model_key, adapter_key = jax.random.split(key)
        params, _ = split_params(model.init(model_key), is_trained)
        for number, (path, kernel) in enumerate(kernels.items()):
            inputs, outputs = kernel.shape
            a = jax.random.uniform(
                jax.random.fold_in(adapter_key, number),
                (inputs, rank),
                kernel.dtype,
                -(inputs**-0.5),
                inputs**-0.5,
            )
            update = {"lora_a": a, "lora_b": jnp.zeros((rank, outputs), kernel.dtype)}
            params = join_params(params, functools.reduce(_inside, reversed(path), update))
        return params

    def freeze(params):
        return split_params(params, is_trained)[1]

    def of(frozen):
        def whole(params):
            return join_params(frozen, split_params(params, is_trained)[0])

        def updating(part, params):
            """Adds the updates to the outputs of the adapted layers of body or head."""

            def intercept(call, args, kwargs, context):
                out = call(*args, **kwargs)
                path = (part, *context.module.path)
                if path not in kernels or context.method_name != "__call__":
                    return out
                update = functools.reduce(lambda node, name: node[name], path, params)
                a, b = (update[name].astype(out.dtype) for name in ("lora_a", "lora_b"))
                return out + scale * (args[0].astype(out.dtype) @ a) @ b

            return nn.intercept_methods(intercept)

        def features(params, inputs, mask=None, key=None):
            with updating("body", params):
                return model.features(whole(params), inputs, mask, key)

        def head(params, features, mask=None, key=None):
            with updating("head", params):
                return model.head(whole(params), features, mask, key)

        def is_layer(path):
            return path in kernels or is_trained((*path, "kernel"))

        return model._replace(
            init=init,
            features=features,
            head=head,
            layers=tuple(filter(is_layer, model.layers)),
            is_norm=lambda path: is_trained(path) and model.is_norm(path),
            is_statistic=lambda path: False,
        )

    return Adapter(freeze, of)


def prompts(
    model: Model, *, length: int, is_trained: Callable[[Path], bool] | None = None
) -> Adapter:
    """Inserts trained tokens, the prompts, into the sequence of a frozen Transformer.

        x_1 .. x_T  ->  x_1 .. x_a, p_1 .. p_length, x_{a+1} .. x_T,
        p [length, d] normal with the standard deviation 0.02

    `a` is `PromptPosition.after`, 0 for the patches of an image. Clients share the frozen
    parameters, and each has its own tokens.

    Args:
      model: A Transformer with a `PromptPosition`, such as `vit` or `two_tower`.
      length: Number of prompts.
      is_trained: `path of an array -> bool`, arrays that are trained whole beside the prompts; None
        means the head, and for prompts inside the head no array.

    Returns:
      The adapter. Its parameters have the array `tokens` `[length, d]` at `body/prompts` or
      `head/prompts`, which is `Model.is_prompt`.

    Raises:
      UserError: the model has no position for prompts or two, or has batch normalization.
    """
    _require_no_statistics(model)
    widths = {}

    def record(call, args, kwargs, context):
        if isinstance(context.module, PromptPosition):
            widths[context.module.path[0]] = args[0].shape[-1]
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        # A new function, as JAX does not trace one again whose shapes it knows.
        shapes = jax.eval_shape(lambda key: model.init(key), jax.eval_shape(jax.random.key, 0))
    if len(widths) != 1:
        raise UserError(
            f"Prompts need one position in a model, and this one has {len(widths)}; name a vision "
            "Transformer or a model of two towers, such as config.model.name=vit."
        )
    ((of_prompts, width),) = widths.items()
    is_trained = is_trained or (model.is_head if of_prompts == "body" else lambda path: False)
    dtype = jax.tree.leaves(shapes)[0].dtype

    def is_prompt(path):
        return path[:2] == (of_prompts, _PROMPTS)

    def init(key):
        model_key, prompt_key = jax.random.split(key)
        params, _ = split_params(model.init(model_key), is_trained)
        tokens = 0.02 * jax.random.normal(prompt_key, (length, width), dtype)
        return join_params(params, {of_prompts: {_PROMPTS: {"tokens": tokens}}})

    def of(frozen):
        def whole(params):
            return join_params(frozen, split_params(params, is_trained)[0])

        def inserting(params):
            """Inserts the prompts of these parameters at the position for prompts."""

            def intercept(call, args, kwargs, context):
                if not isinstance(context.module, PromptPosition):
                    return call(*args, **kwargs)
                (x,), after = args, context.module.after
                tokens = params[of_prompts][_PROMPTS]["tokens"].astype(x.dtype)
                tokens = jnp.broadcast_to(tokens, (*x.shape[:-2], *tokens.shape))
                return jnp.concatenate([x[..., :after, :], tokens, x[..., after:, :]], axis=-2)

            return nn.intercept_methods(intercept)

        def features(params, inputs, mask=None, key=None):
            with inserting(params):
                return model.features(whole(params), inputs, mask, key)

        def head(params, features, mask=None, key=None):
            with inserting(params):
                return model.head(whole(params), features, mask, key)

        def class_features(params):
            with inserting(params):
                return model.class_features(whole(params))

        def is_layer(path):
            return is_trained((*path, "kernel"))

        return model._replace(
            init=init,
            features=features,
            head=head,
            class_features=None if model.class_features is None else class_features,
            layers=((of_prompts, _PROMPTS), *filter(is_layer, model.layers)),
            is_prompt=is_prompt,
            is_adapter=lambda path: is_trained(path) and model.is_adapter(path),
            is_norm=lambda path: is_trained(path) and model.is_norm(path),
            is_statistic=lambda path: False,
        )

    return Adapter(lambda params: split_params(params, is_trained)[1], of)


# The name of the prompts in the body's or the head's parameters.
_PROMPTS = "prompts"


def _require_no_statistics(model: Model) -> None:
    if model.observe is not None:
        raise UserError(
            "An adapter takes no model with batch normalization, whose running statistics would be "
            "frozen; name a model without it, such as one with GroupNorm."
        )


def _inside(node: Params, name: str) -> Params:
    return {name: node}
