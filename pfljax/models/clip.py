"""Two towers: the features of an image are compared with those of the name of each class.

The network is CLIP's, in any size; `load` reads the weights of a published CLIP model.

References:
  Radford, Kim, Hallacy, Ramesh, Goh, Agarwal, Sastry, Askell, Mishkin, Clark, Krueger, Sutskever,
  "Learning Transferable Visual Models From Natural Language Supervision", 2021,
  https://arxiv.org/abs/2103.00020.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from pfljax.core import Params
from pfljax.errors import UserError
from pfljax.models import params_file
from pfljax.models.attention import Blocks, PromptPosition, cut_patches, require_patches
from pfljax.models.ids import Embedding
from pfljax.models.kernels.product import product
from pfljax.models.layers import Offset, uniform_by_fan_in
from pfljax.models.model import Model, from_flax
from pfljax.ops.similarity import unit

_SMALL = nn.initializers.normal(0.02)


def quick_gelu(x: jax.Array) -> jax.Array:
    """Returns `x sigmoid(1.702 x)`, CLIP's activation."""
    return x * jax.nn.sigmoid(1.702 * x)


class Projection(nn.Module):
    """A matrix without a bias: `[..., d] -> [..., features]`.

    Attributes:
      features: Number of outputs.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        kernel = self.param("kernel", uniform_by_fan_in(width), (width, self.features))
        out = product(x.astype(kernel.dtype).reshape(-1, width), kernel)
        return out.reshape(*x.shape[:-1], self.features)


class FirstToken(nn.Module):
    """A trained token before the others: `[B, T, d] -> [B, 1 + T, d]`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        token = self.param("token", _SMALL, x.shape[-1:])
        first = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        return jnp.concatenate([first, x], axis=1)


class Positions(nn.Module):
    """Adds the first rows of a table of positions: `[..., T, d] -> [..., T, d]`.

    Attributes:
      length: Number of positions, the largest T.
    """

    length: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        steps, width = x.shape[-2:]
        if steps > self.length:
            raise UserError(
                f"The tower of the classes has {self.length} positions, but the name of a class "
                f"has {steps} tokens with prompts; set config.adapter.length to a smaller number."
            )
        return x + self.param("offset", _SMALL, (self.length, width))[:steps]


class ImageTower(nn.Module):
    """Patches after a trained token, which is read in the end: `[B, H, W, c] -> [B, features]`.

    Attributes:
      patch: The height and width of a patch in pixels.
      width: The width of the blocks.
      layers: Number of blocks.
      heads: Number of heads of each attention.
      features: Number of features, of length 1.
    """

    patch: int
    width: int
    layers: int
    heads: int
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Projection(self.width, name="patches")(cut_patches(x, self.patch))
        x = Offset(2, _SMALL, name="positions")(FirstToken(name="first")(x))
        x = nn.LayerNorm(epsilon=1e-5, name="norm_before")(x)
        x = Blocks(self.layers, self.heads, activation=quick_gelu, name="blocks")(x)
        x = nn.LayerNorm(epsilon=1e-5, name="norm_after")(x[:, 0])
        return unit(Projection(self.features, name="projection")(x))


class ClassTower(nn.Module):
    """A causal Transformer that reads the names of classes: `() -> [C, features]`.

    A name is the token of the start, its own tokens, and the token of the end, which is read.
    Prompts follow the token of the start.

    Attributes:
      names: The ids of the tokens of each class, of one length. The end has the largest id, as in
        CLIP; ids after it are not read.
      vocabulary: Number of ids.
      context: Number of positions, the largest number of tokens with prompts.
      width: The width of the blocks.
      layers: Number of blocks.
      heads: Number of heads of each attention.
      features: Number of features, of length 1.
    """

    names: tuple[tuple[int, ...], ...]
    vocabulary: int
    context: int
    width: int
    layers: int
    heads: int
    features: int

    @nn.compact
    def __call__(self) -> jax.Array:
        ids = np.asarray(self.names, np.int32)
        x = Embedding(self.vocabulary, self.width, _SMALL, name="tokens")(ids)
        x = PromptPosition(after=1)(x)
        inserted = x.shape[1] - ids.shape[1]
        x = Positions(self.context, name="positions")(x)
        blocks = Blocks(self.layers, self.heads, True, activation=quick_gelu, name="blocks")
        x = nn.LayerNorm(epsilon=1e-5, name="norm_after")(blocks(x))
        x = x[np.arange(len(ids)), np.argmax(ids, axis=1) + inserted]
        return unit(Projection(self.features, name="projection")(x))


class Scale(nn.Module):
    """Multiplies by a trained positive number, at first 1 / 0.07."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x * jnp.exp(self.param("log", nn.initializers.constant(-math.log(0.07)), ()))


class Comparison(nn.Module):
    """Scaled products with the features of the classes: `[B, features] -> [B, C]`.

    Attributes:
      classes: The tower of the classes.
    """

    classes: nn.Module

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        return Scale(name="scale")(features @ self.classes().T)


def join_towers(image: nn.Module, classes: ClassTower, input_shape: tuple[int, ...]) -> Model:
    """Returns the model whose body is a tower of inputs, and whose head compares with classes.

    Args:
      image: `[B, *input_shape] -> [B, features]`.
      classes: The tower of the classes, with as many features.
      input_shape: The shape of an example.
    """
    model = from_flax(image, Comparison(classes), input_shape)

    def class_features(params):
        return classes.apply({"params": params["head"]["classes"]})

    return model._replace(class_features=class_features)


def two_tower(
    input_shape: tuple[int, ...],
    num_classes: int,
    patch: int = 4,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    features: int = 64,
    context: int = 32,
    class_width: int | None = None,
    class_layers: int | None = None,
    class_heads: int | None = None,
    name_vocabulary: int | None = None,
    names: tuple[tuple[int, ...], ...] | None = None,
) -> Model:
    """CLIP's network for images and the names of classes: `[B, H, W, c] -> [B, features]`.

    The logits are `s <f(x), z_c>`, with features of length 1 of an image and of the name of a
    class. Without `names` a class has one id of its own between those of start and end, and
    `class_features` then is an embedding of the class.
    32x32x3, 10 classes: 218,625 parameters. CLIP ViT-B/16 has the arguments patch=16, width=768,
    layers=12, heads=12, features=512, context=77, class_width=512, class_layers=12, class_heads=8,
    name_vocabulary=49408, and the ids of CLIP's tokenizer as names; `load` reads its weights.

    References:
      Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
      https://arxiv.org/abs/2103.00020.
    """
    require_patches("two_tower", input_shape, patch)
    for key, of_tower, number in (
        ("width", width, heads),
        ("class_width", class_width or width, class_heads or heads),
    ):
        if of_tower % number:
            raise UserError(
                f"The model two_tower divides {key}={of_tower} among {number} heads; set "
                f"config.model.{key} to a multiple."
            )
    if names is None:
        names = tuple((0, 1 + c, 1 + num_classes) for c in range(num_classes))
        name_vocabulary = name_vocabulary or 2 + num_classes
    elif name_vocabulary is None:
        raise UserError(
            "The model two_tower has names of classes, but no number of ids; set "
            "config.model.name_vocabulary."
        )
    lengths = {len(name) for name in names}
    last = max(max(name) for name in names)
    if len(names) != num_classes or len(lengths) != 1 or last >= name_vocabulary:
        raise UserError(
            f"The model two_tower has {len(names)} names of {sorted(lengths)} tokens with ids up "
            f"to {last}, but needs one for each of {num_classes} classes, of one length, with ids "
            f"below {name_vocabulary}; correct config.model.names or config.model.name_vocabulary."
        )
    classes = ClassTower(
        tuple(map(tuple, names)),
        name_vocabulary,
        context,
        class_width or width,
        class_layers or layers,
        class_heads or heads,
        features,
    )
    image = ImageTower(patch, width, layers, heads, features)
    return join_towers(image, classes, input_shape)


def load(path: pathlib.Path, like: Params) -> Params:
    """Reads the weights of a CLIP model from a file of safetensors.

    Args:
      path: The file, with the names of arrays that the published models have in this format, such
        as `vision_model.embeddings.class_embedding`.
      like: The params of a `two_tower` of the same size, or their shapes.

    Returns:
      NumPy arrays in the structure and the dtypes of `like`; `params_file.save` writes them to a
      file for `config.adapter.base`.

    Raises:
      UserError: the file cannot be read, or has the weights of another model or size.
    """
    wanted = flatten_dict(like, sep="/")
    sources = dict(_sources(wanted))
    names = {name for source in sources.values() for name in source}
    found, _ = params_file.read(path, names)
    arrays = {}
    for target, source in sources.items():
        if missing := [name for name in source if name not in found]:
            raise UserError(
                f"{path} has no array {missing[0]!r}; it is no CLIP model of this size."
            )
        parts = [_ours(target, found[name]) for name in source]
        array = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
        if array.shape != wanted[target].shape:
            raise UserError(
                f"{path} has an array {source[0]!r} of shape {array.shape} in our form, and the "
                f"model's is of shape {wanted[target].shape}; it is of another size."
            )
        if not np.all(np.isfinite(array)):
            raise UserError(f"{path} has an array {source[0]!r} with values that are not finite.")
        arrays[target] = array.astype(wanted[target].dtype)
    return unflatten_dict(arrays, sep="/")


_TOWERS = {"body": "vision_model", "head/classes": "text_model"}
_ARRAYS = {
    "body/patches/kernel": "vision_model.embeddings.patch_embedding.weight",
    "body/first/token": "vision_model.embeddings.class_embedding",
    "body/positions/offset": "vision_model.embeddings.position_embedding.weight",
    "body/norm_before": "vision_model.pre_layrnorm",
    "body/norm_after": "vision_model.post_layernorm",
    "body/projection/kernel": "visual_projection.weight",
    "head/classes/tokens/embedding": "text_model.embeddings.token_embedding.weight",
    "head/classes/positions/offset": "text_model.embeddings.position_embedding.weight",
    "head/classes/norm_after": "text_model.final_layer_norm",
    "head/classes/projection/kernel": "text_projection.weight",
    "head/scale/log": "logit_scale",
}
_KINDS = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def _sources(wanted: Params) -> Iterator[tuple[str, list[str]]]:
    """Yields each of our paths with the names of CLIP's arrays of which it is made."""
    for path in wanted:
        if path in _ARRAYS:
            yield path, [_ARRAYS[path]]
            continue
        layer, _, kind = path.rpartition("/")
        if layer in _ARRAYS:
            yield path, [f"{_ARRAYS[layer]}.{_KINDS[kind]}"]
            continue
        tower, _, inside = layer.partition("/blocks/")
        module, _, part = inside.partition("/")
        number = int(module.rpartition("_")[2])
        if part:  # an attention: Dense_0 makes queries, keys and values
            names = ["q_proj", "k_proj", "v_proj"] if part == "Dense_0" else ["out_proj"]
            block, names = number, [f"self_attn.{name}" for name in names]
        else:
            block, second = divmod(number, 2)
            kinds = {"LayerNorm": "layer_norm", "Dense": "mlp.fc"}
            names = [f"{kinds[module.rpartition('_')[0]]}{second + 1}"]
        prefix = f"{_TOWERS[tower]}.encoder.layers.{block}"
        yield path, [f"{prefix}.{name}.{_KINDS[kind]}" for name in names]


def _ours(target: str, array: np.ndarray) -> np.ndarray:
    """Returns an array of CLIP's in our order of axes: kernels are `[inputs, outputs]`."""
    if not target.endswith("/kernel"):
        return array
    if array.ndim == 4:  # of patches: outputs, channels, height, width
        return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
    return array.T
