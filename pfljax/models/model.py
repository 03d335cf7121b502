"""A network as pure functions, with its body and its head apart."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from pfljax.core import Path, streams, tree
from pfljax.errors import UserError
from pfljax.models.layers import STATISTICS, BatchNorm, GroupNorm

NORMALIZATION = (
    *(BatchNorm, GroupNorm),
    *(nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm, nn.RMSNorm),
)


class Model(NamedTuple):
    """A network; its parameters are a nested dict with the keys 'body' and 'head'.

    Where a function takes `mask` `[B]`, the network trains: batch normalization uses the statistics
    of the examples for which it is True. None means the running ones. Where a function takes `key`,
    a typed PRNG key, layers with dropout drop; None drops nothing.

    Attributes:
      init: `key -> parameters`.
      features: `(parameters, inputs [B, ...], mask=None, key=None) -> [B, d]`, the body.
      head: `(parameters, features [B, d], mask=None, key=None) -> outputs`.
      is_head: `path -> bool`.
      num_features: `d`; 0 where the features of an example are no row, but one for each position.
      layers: where each layer's arrays stand, in the order in which inputs pass them.
      is_norm: `path -> bool`, whether the array is of a normalization layer.
      is_statistic: `path -> bool`, whether the array is a running statistic.
      observe: `(parameters, inputs, mask) -> statistics`, the running statistics after training on
        these examples, a part of the nested dict; None for a network without batch normalization.
      reads_ids: whether inputs are ids, int32, rather than measurements; for inputs that are a
        dict, one answer for all of them or a dict with the same names.
    """

    init: Callable[[jax.Array], Any]
    features: Callable[..., jax.Array]
    head: Callable[..., jax.Array]
    is_head: Callable[[Path], bool]
    num_features: int
    layers: tuple[Path, ...]
    is_norm: Callable[[Path], bool]
    is_statistic: Callable[[Path], bool]
    observe: Callable[..., Any] | None
    reads_ids: bool | Mapping[str, bool] = False


def map_measurements(
    function: Callable[..., jax.Array], inputs: Any, reads_ids: bool | Mapping[str, bool], *others
) -> Any:
    """Returns inputs with a function applied to those that are measurements; ids stay as they are.

    Args:
      function: `(input, *others) -> input`.
      inputs: One array, or a dict of arrays.
      reads_ids: `Model.reads_ids`.
      *others: Further arguments; where inputs are a dict, one for all or a dict by their names.

    Example:
      >>> map_measurements(lambda x, y: x / y, {'a': 6, 'b': 6}, {'a': False, 'b': True}, 3)
      {'a': 2.0, 'b': 6}
    """
    if isinstance(inputs, Mapping):

        def named(value, name):
            return value[name] if isinstance(value, Mapping) else value

        return {
            name: map_measurements(
                function, one, named(reads_ids, name), *(named(other, name) for other in others)
            )
            for name, one in inputs.items()
        }
    return inputs if reads_ids else function(inputs, *others)


def zero_example(input_shape: Any, reads_ids: bool | Mapping[str, bool]) -> Any:
    """Returns a batch of one example of zeros, as a network takes it.

    Args:
      input_shape: Shape of one example, or a dict of shapes.
      reads_ids: `Model.reads_ids`.
    """
    if isinstance(input_shape, Mapping):
        return {
            name: zero_example(
                shape, reads_ids[name] if isinstance(reads_ids, Mapping) else reads_ids
            )
            for name, shape in input_shape.items()
        }
    return jnp.zeros((1, *input_shape), jnp.int32 if reads_ids else None)


def compute_in(model: Model, dtype: jax.typing.DTypeLike) -> Model:
    """Returns a model that computes in another type than that in which its parameters are kept.

    Products, activations and their gradients are computed in `dtype`; normalizations, parameters,
    features, outputs and the gradients of parameters keep the parameters' own.

    Args:
      model: a network.
      dtype: such as bfloat16.
    """

    def cast(parameters):
        def one(path, leaf):
            return leaf if model.is_norm(tuple(part.key for part in path)) else leaf.astype(dtype)

        return jax.tree_util.tree_map_with_path(one, parameters)

    def shortened(inputs):
        return map_measurements(lambda x: x.astype(dtype), inputs, model.reads_ids)

    def features(parameters, inputs, mask=None, key=None):
        found = model.features(cast(parameters), shortened(inputs), mask, key)
        return found.astype(tree.dtype(parameters))

    def head(parameters, features, mask=None, key=None):
        outputs = model.head(cast(parameters), features.astype(dtype), mask, key)
        return outputs.astype(tree.dtype(parameters))

    def observe(parameters, inputs, mask):
        return model.observe(cast(parameters), shortened(inputs), mask)

    observed = None if model.observe is None else observe
    return model._replace(features=features, head=head, observe=observed)


class Split(nn.Module):
    """Two modules in a row: `head(body(x))`, or `head(body(x), array)` of the body's `tied` array.

    Attributes:
      body: the first.
      head: the second.
      tied: where the body keeps an array that the head uses too; `()` for none.
    """

    body: nn.Module
    head: nn.Module
    tied: Path = ()

    def __call__(self, x: jax.Array) -> jax.Array:
        features = self.body(x)
        if not self.tied:
            return self.head(features)
        return self.head(features, _at(self.tied, self.body.variables["params"]))


# Layers with dropout, and the attribute that holds its rate.
_DROPOUT = {nn.Dropout: "rate", nn.MultiHeadDotProductAttention: "dropout_rate"}

_RANDOM = (
    "The network draws random numbers of its own, and pfljax gives networks keys for dropout only; "
    "take that out, or take nn.Dropout."
)
_DETERMINISTIC = (
    "The network sets `deterministic` of {}; leave it out, as pfljax drops in training and in no "
    "evaluation."
)
_BOTH = (
    "The network has dropout and batch normalization, whose running statistics would be those "
    "without dropout; take GroupNorm in place of batch normalization."
)
_OTHER_ARRAYS = (
    "The network keeps arrays in {} beside its parameters; take the layers of "
    "pfljax.models.layers, such as BatchNorm, or GroupNorm in place of flax's BatchNorm."
)


def _at(path: Path, arrays: Any) -> jax.Array:
    return functools.reduce(lambda node, name: node[name], path, arrays)


def shapes_of(arrays: Any) -> Any:
    """Returns the shape of an array, or the shapes of a dict of arrays by their names."""
    if isinstance(arrays, Mapping):
        return {name: shapes_of(array) for name, array in arrays.items()}
    return tuple(arrays.shape)


def _dropping(key: jax.Array | None) -> contextlib.AbstractContextManager:
    """Makes the layers with dropout drop where there is a key, and not where it is None."""

    def call(apply, args, kwargs, context):
        if _waits_for_mode(context, args, kwargs):
            kwargs = {**kwargs, "deterministic": key is None}
        return apply(*args, **kwargs)

    return nn.intercept_methods(call)


def _waits_for_mode(context: nn.module.InterceptorContext, args: tuple, kwargs: dict) -> bool:
    """Whether a call is one of a layer with dropout, which does not say whether to drop.

    Raises:
      UserError: the layer would drop, and says itself whether it does.
    """
    module = context.module
    rate = next((name for kind, name in _DROPOUT.items() if isinstance(module, kind)), None)
    if rate is None or context.method_name != "__call__":
        return False
    given = inspect.signature(type(module).__call__).bind(module, *args, **kwargs).arguments
    decides = module.deterministic is not None or given.get("deterministic") is not None
    if decides and getattr(module, rate) > 0:
        raise UserError(_DETERMINISTIC.format(type(module).__name__))
    # Attention without dropout needs no mode.
    return not decides and (isinstance(module, nn.Dropout) or getattr(module, rate) > 0)


class Layers(NamedTuple):
    """What a network consists of.

    Attributes:
      types: Path and type of each module that owns arrays, in the order in which inputs pass.
      dropout: Names of flax's random streams of the layers with dropout; empty for a network
        without any.
    """

    types: dict[Path, type[nn.Module]]
    dropout: frozenset[str]


def layers_of(network: nn.Module, example: Any) -> Layers:
    """Returns what a network consists of.

    Raises:
      UserError: the network keeps arrays that are no parameters and would be lost, decides itself
        when it drops, draws other random numbers, or cannot be applied to an example.
    """
    types, streams_of = {}, []

    def record(call, args, kwargs, context):
        module = context.module
        types.setdefault(module.path, type(module))
        if isinstance(module, nn.BatchNorm):
            raise UserError(_OTHER_ARRAYS.format("['batch_stats']"))
        if _waits_for_mode(context, args, kwargs):
            streams_of.append(getattr(module, "rng_collection", "dropout"))
            kwargs = {**kwargs, "deterministic": True}
        return call(*args, **kwargs)

    def start_and_apply(x):
        variables = network.init(jax.random.key(0), x)
        network.apply(variables, x)  # without a key: `init` would share its own
        return variables

    try:
        with nn.intercept_methods(record):
            # Not even the key is made: that would compile, before a mistake is reported.
            variables = jax.eval_shape(start_and_apply, example)
    except UserError:
        raise
    except flax.errors.InvalidRngError as error:
        raise UserError(_RANDOM) from error
    except Exception as error:  # whatever a user's own module raises
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"The network cannot be applied to inputs of shape {shapes_of(example)} "
            f"({type(error).__name__}: {reason}); mend the module, or name another model."
        ) from error
    if others := set(variables) - {"params"}:
        raise UserError(_OTHER_ARRAYS.format(sorted(others)))
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    owners = {tuple(part.key for part in path[:-1]) for path, _ in leaves}
    types = {path: kind for path, kind in types.items() if path in owners}
    if streams_of and any(issubclass(kind, BatchNorm) for kind in types.values()):
        raise UserError(_BOTH)
    return Layers(types, frozenset(streams_of))


def from_flax(
    body: nn.Module,
    head: nn.Module,
    input_shape: tuple[int, ...] | Mapping[str, tuple[int, ...]],
    *,
    reads_ids: bool | Mapping[str, bool] = False,
    tied: Path = (),
) -> Model:
    """Makes a `Model` of two flax modules.

    Args:
      body: `[B, *input_shape] -> [B, d]`, or `[B, T, d]`; it may have no parameters. Where examples
        are dicts of arrays, it takes such a dict.
      head: `[B, d] -> outputs`, or `[B, T, d] -> outputs`.
      input_shape: of one example; a dict of shapes where examples are dicts of arrays.
      reads_ids: whether inputs are ids, int32; a dict by the same names where only some are.
      tied: where the body keeps an array that the head takes as second argument, such as an
        embedding; it stays the body's.

    Raises:
      UserError: body or head is no flax.linen module, or is one that `layers_of` refuses.
    """
    for part, module in {"body": body, "head": head}.items():
        if not isinstance(module, nn.Module):
            kind = module if isinstance(module, type) else type(module)
            raise UserError(
                f"The network's {part} ({kind.__module__}.{kind.__qualname__}) is no instance of a "
                "flax.linen module; write it with flax.linen, as flax.nnx keeps arrays in modules."
            )
    network = Split(body, head, tied)

    def example():
        return zero_example(input_shape, reads_ids)

    types, dropout = layers_of(network, jax.eval_shape(example))
    norms = {path for path, kind in types.items() if issubclass(kind, NORMALIZATION)}
    watchers = [path for path, kind in types.items() if issubclass(kind, BatchNorm)]
    watching = {path[0] for path in watchers}

    def init(key):
        with _dropping(None):
            return network.init(key, example())["params"]

    def variables(parameters, part, mask):
        """What flax wants for one part: its arrays and, in training, the mask at each BatchNorm."""
        arrays = {"params": parameters.get(part, {})}
        if mask is not None:
            masks = {(*path[1:], "mask"): mask for path in watchers if path[0] == part}
            arrays["examples"] = unflatten_dict(masks)
        return arrays

    def apply(module, arrays, key, *inputs):
        if not dropout:
            return module.apply(arrays, *inputs)
        own = None if key is None else streams.key_of(key, streams.DROPOUT, int(module is head))
        with _dropping(own):
            return module.apply(
                arrays, *inputs, rngs={} if own is None else dict.fromkeys(dropout, own)
            )

    def features(parameters, inputs, mask=None, key=None):
        return apply(body, variables(parameters, "body", mask), key, inputs)

    def apply_head(parameters, features, mask=None, key=None):
        arrays = [_at(tied, parameters["body"])] if tied else []
        return apply(head, variables(parameters, "head", mask), key, features, *arrays)

    def observe(parameters, inputs, mask):
        if not watching <= set(parameters):
            raise ValueError(
                "Running statistics are those of a model with body and head; for a dict of models "
                "take LocalTraining.of_models."
            )
        seen, x = {}, inputs
        for part, module in (("body", body), ("head", head))[: 2 if "head" in watching else 1]:
            x, state = module.apply(variables(parameters, part, mask), x, mutable=["observed"])
            seen.update({part: state["observed"]} if part in watching else {})
        return seen

    of_one = jax.eval_shape(lambda: features(init(jax.random.key(0)), example()))

    return Model(
        init=init,
        features=features,
        head=apply_head,
        is_head=lambda path: path[0] == "head",
        num_features=of_one.shape[1] if len(of_one.shape) == 2 else 0,
        layers=tuple(types),
        is_norm=lambda path: path[:-1] in norms,
        is_statistic=lambda path: path[:-1] in watchers and path[-1] in STATISTICS,
        observe=observe if watchers else None,
        reads_ids=reads_ids,
    )
