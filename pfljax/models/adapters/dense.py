"""Adapters of single layers: low rank, scales, biases, bottlenecks, a basis, a mixture."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pfljax.core import Path
from pfljax.models.adapters.overlay import Kind, Layer
from pfljax.models.layers import uniform_by_fan_in

_MATRICES = "layers with a matrix"


def has_matrix(layer: Layer) -> bool:
    """Whether a layer multiplies its input by its matrix, `[..., in] -> [..., out]`."""
    kernel = layer.arrays.get("kernel")
    if kernel is None or kernel.ndim != 2:
        return False
    inputs, output = (getattr(x, "shape", ()) for x in (layer.inputs[0], layer.output))
    return (*inputs[:-1], *kernel.shape) == (*output[:-1], inputs[-1], output[-1])


def _kernel(layer: Layer) -> tuple[int, int, jnp.dtype]:
    kernel = layer.arrays["kernel"]
    return *kernel.shape, kernel.dtype


def lora(*, rank: int, scale: float = 1.0) -> Kind:
    """A low-rank update of a matrix.

        y = x W + b + scale (x A) B,   A [in, rank] uniform in +-1/sqrt(in), B [rank, out] zero

    The product `A B` is never formed: clients trained at once share `x W`, and each adds two thin
    separate products.

    Args:
      rank: Rank of an update.
      scale: Factor on an update; alpha / rank in other notations.

    References:
      Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, "LoRA: Low-Rank Adaptation of Large
      Language Models", 2022, https://arxiv.org/abs/2106.09685.
    """

    def init(key, layer):
        inputs, outputs, dtype = _kernel(layer)
        a = uniform_by_fan_in(inputs)(key, (inputs, rank), dtype)
        return {"lora_a": a, "lora_b": jnp.zeros((rank, outputs), dtype)}

    def apply(arrays, call, args):
        out = call(*args)
        a, b = (arrays[name].astype(out.dtype) for name in ("lora_a", "lora_b"))
        return out + scale * (args[0].astype(out.dtype) @ a) @ b

    return Kind(("lora_a", "lora_b"), has_matrix, init, apply, _MATRICES)


def lora_mixture(*, rank: int, experts: int, scale: float = 1.0) -> Kind:
    """Several low-rank updates of a matrix, mixed by a gate.

        y = x W + b + scale sum_m g_m (x A_m) B_m,   g = softmax(x G + c)

    `A_m` and `B_m` start as in `lora`, and `G` `[in, experts]` and `c` `[experts]` at zero, so that
    all experts have the same weight.

    Args:
      rank: Rank of each update.
      experts: Number `M` of updates.
      scale: Factor on the mixture.

    References:
      Choi, Lim, Kim, "CoPL: Collaborative Preference Learning for Personalizing LLMs", 2025,
      https://arxiv.org/abs/2503.01658 (experts and a gate; there, the gate reads an embedding of
      the user, selects one expert, and another one is always on).
    """

    def init(key, layer):
        inputs, outputs, dtype = _kernel(layer)
        return {
            "expert_a": uniform_by_fan_in(inputs)(key, (experts, inputs, rank), dtype),
            "expert_b": jnp.zeros((experts, rank, outputs), dtype),
            "gate_kernel": jnp.zeros((inputs, experts), dtype),
            "gate_bias": jnp.zeros((experts,), dtype),
        }

    def apply(arrays, call, args):
        out = call(*args)
        a, b, kernel, bias = (arrays[name].astype(out.dtype) for name in names)
        x = args[0].astype(out.dtype)
        gate = jax.nn.softmax(x @ kernel + bias, axis=-1)
        hidden = jnp.einsum("...i,mir->...mr", x, a) * gate[..., None]
        return out + scale * jnp.einsum("...mr,mro->...o", hidden, b)

    names = ("expert_a", "expert_b", "gate_kernel", "gate_bias")
    return Kind(names, has_matrix, init, apply, _MATRICES)


def basis(*, rank: int, scale: float = 1.0) -> Kind:
    """An update of a matrix in a given basis of matrices of rank one; its coefficients are trained.

        y = x W + b + scale sum_k c_k (x a_k) b_k,   c zero

    `a_k` and `b_k` are frozen with the base: drawn with it, or a part of its file. Each layer has
    `rank` trained numbers.

    Args:
      rank: Number `K` of matrices in the basis.
      scale: Factor on an update.

    References:
      Yuan, Cun, Zhang, Li, Qi, Wang, Shan, Zheng, "Inserting Anybody in Diffusion Models via Celeb
      Basis", 2023, https://arxiv.org/abs/2306.00926 (coefficients of a basis for each user; there,
      the basis is one of embeddings).
    """

    def init(key, layer):
        inputs, outputs, dtype = _kernel(layer)
        first, second = jax.random.split(key)
        return {
            "basis_a": uniform_by_fan_in(inputs)(first, (inputs, rank), dtype),
            "basis_b": uniform_by_fan_in(rank)(second, (rank, outputs), dtype),
            "coefficients": jnp.zeros((rank,), dtype),
        }

    def apply(arrays, call, args):
        out = call(*args)
        a, b, c = (arrays[name].astype(out.dtype) for name in names)
        return out + scale * ((args[0].astype(out.dtype) @ a) * c) @ b

    names = ("basis_a", "basis_b", "coefficients")
    return Kind(names, has_matrix, init, apply, _MATRICES, fixed=names[:2])


def ia3(*, scales_inputs: Callable[[Path], bool] = lambda path: False) -> Kind:
    """A trained factor on every output, or on every input, of a layer.

        y = l * (x W + b),   or   y = (l * x) W + b,   l one

    The paper scales keys, values, and the inputs of the second layer of each feed-forward network.

    Args:
      scales_inputs: `path of a layer -> bool`, whether its inputs are scaled in place of its
        outputs.

    References:
      Liu, Tam, Muqeeth, Mohta, Huang, Bansal, Raffel, "Few-Shot Parameter-Efficient Fine-Tuning is
      Better and Cheaper than In-Context Learning", 2022, https://arxiv.org/abs/2205.05638.
    """

    def init(key, layer):
        inputs, outputs, dtype = _kernel(layer)
        if scales_inputs(layer.path):
            return {"ia3_input": jnp.ones((inputs,), dtype)}
        return {"ia3_output": jnp.ones((outputs,), dtype)}

    def apply(arrays, call, args):
        if "ia3_input" in arrays:
            x = args[0]
            return call(x * arrays["ia3_input"].astype(x.dtype), *args[1:])
        out = call(*args)
        return out * arrays["ia3_output"].astype(out.dtype)

    return Kind(("ia3_input", "ia3_output"), has_matrix, init, apply, _MATRICES)


def bias() -> Kind:
    """A term that is added to the outputs of each layer that has a bias, as a change of that bias.

        y = layer(x) + delta,   delta zero

    References:
      Ben Zaken, Ravfogel, Goldberg, "BitFit: Simple Parameter-efficient Fine-tuning for
      Transformer-based Masked Language-models", 2022, https://arxiv.org/abs/2106.10199.
    """

    def fits(layer):
        own = layer.arrays.get("bias")
        return own is not None and own.shape == getattr(layer.output, "shape", ())[-1:]

    def init(key, layer):
        own = layer.arrays["bias"]
        return {"bias_change": jnp.zeros(own.shape, own.dtype)}

    def apply(arrays, call, args):
        out = call(*args)
        return out + arrays["bias_change"].astype(out.dtype)

    return Kind(("bias_change",), fits, init, apply, "layers with a bias")


def houlsby(*, width: int) -> Kind:
    """A bottleneck with a residual connection after a layer.

        y = h + gelu(h W_down + b_down) W_up + b_up,   h = layer(x),   W_up and b_up zero

    The paper has one after the output layer of each attention and of each feed-forward network,
    before their residual connections.

    Args:
      width: Number of hidden units.

    References:
      Houlsby, Giurgiu, Jastrzebski, Morrone, de Laroussilhe, Gesmundo, Attariyan, Gelly,
      "Parameter-Efficient Transfer Learning for NLP", 2019, https://arxiv.org/abs/1902.00751.
    """

    def init(key, layer):
        _, size, dtype = _kernel(layer)
        return {
            "down_kernel": uniform_by_fan_in(size)(key, (size, width), dtype),
            "down_bias": jnp.zeros((width,), dtype),
            "up_kernel": jnp.zeros((width, size), dtype),
            "up_bias": jnp.zeros((size,), dtype),
        }

    def apply(arrays, call, args):
        h = call(*args)
        down, down_bias, up, up_bias = (arrays[name].astype(h.dtype) for name in names)
        return h + jax.nn.gelu(h @ down + down_bias) @ up + up_bias

    names = ("down_kernel", "down_bias", "up_kernel", "up_bias")
    return Kind(names, has_matrix, init, apply, _MATRICES)


def hidden_map(*, rank: int, scale: float = 1.0) -> Kind:
    """A linear map of the features, which starts at the identity.

        f = h + scale (h A) B,   h = body(x),   A uniform in +-1/sqrt(d), B zero

    Args:
      rank: Rank of the map's difference from the identity.
      scale: Factor on that difference.

    References:
      Chen, Zhang, Luo, Chai, Liu, "PAD: Personalized Alignment of LLMs at Decoding-Time", 2025,
      https://arxiv.org/abs/2410.04070 (a map of the last hidden state, of full rank).
    """

    def fits(layer):
        return layer.path == ("body",) and hasattr(layer.output, "shape")

    def init(key, layer):
        size, dtype = layer.output.shape[-1], layer.output.dtype
        a = uniform_by_fan_in(size)(key, (size, rank), dtype)
        return {"map_a": a, "map_b": jnp.zeros((rank, size), dtype)}

    def apply(arrays, call, args):
        h = call(*args)
        a, b = (arrays[name].astype(h.dtype) for name in ("map_a", "map_b"))
        return h + scale * (h @ a) @ b

    return Kind(("map_a", "map_b"), fits, init, apply, "features that are an array")


def user_token() -> Kind:
    """A vector that is added to all rows of an embedding: one row of weights for each client.

        x = E[ids] + u,   u [d] zero

    A token before the text, as in the paper, is `prompt` with one token.

    References:
      Wozniak, Koptyra, Janz, Kazienko, Kocon, "Personalized Large Language Models", 2024,
      https://arxiv.org/abs/2402.09269.
    """

    def fits(layer):
        return "embedding" in layer.arrays

    def init(key, layer):
        return {"user": jnp.zeros(layer.output.shape[-1:], layer.output.dtype)}

    def apply(arrays, call, args):
        out = call(*args)
        return out + arrays["user"].astype(out.dtype)

    return Kind(("user",), fits, init, apply, "embeddings of ids")
