"""Architectures, described so that every system can build them, and their FLOPs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple


class Layer(NamedTuple):
    """A matrix product: of a dense layer, or of a convolution's kernel with every window.

    Attributes:
      inputs: Number of entries summed for one output.
      outputs: Number of features.
      positions: Number of uses of the kernel in one example; 1 for a dense layer.
    """

    inputs: int
    outputs: int
    positions: int


class Network(NamedTuple):
    """An architecture: ReLU after all layers but the last.

    Attributes:
      model: The name of the model in pfljax.
      convolutions: The features, kernel size, padding and whether 2x2 max-pooling follows, for each
        convolution.
      widths: The widths of the dense layers before the last one.
    """

    model: str
    convolutions: tuple[tuple[int, int, str, bool], ...] = ()
    widths: tuple[int, ...] = ()

    def config(self) -> dict:
        """Returns the keys of the model in a config."""
        named = {"name": self.model}
        return {**named, "widths": self.widths} if self.model == "mlp" else named

    def layers(self, shape: tuple[int, ...], num_classes: int) -> Iterator[Layer]:
        """Yields the layers for examples of a shape, in the order in which inputs pass them."""
        *sides, channels = shape
        for features, size, padding, pooled in self.convolutions:
            sides = [side - (size - 1 if padding == "VALID" else 0) for side in sides]
            yield Layer(size**2 * channels, features, math.prod(sides))
            sides = [side // 2 if pooled else side for side in sides]
            channels = features
        inputs = math.prod(sides) * channels
        for width in (*self.widths, num_classes):
            yield Layer(inputs, width, 1)
            inputs = width

    def flop_per_example(self, shape: tuple[int, ...], num_classes: int) -> int:
        """Returns the FLOPs of the gradient of one example.

        Matrix products are counted as direct sums, whatever implementation computes them: the
        forward pass, the kernels' gradients, and the inputs' gradients of all layers but the first.
        """
        layers = self.layers(shape, num_classes)
        products = [2 * layer.inputs * layer.outputs * layer.positions for layer in layers]
        return 3 * sum(products) - products[0]


NETWORKS = {
    "logistic": Network("logistic"),
    "mlp": Network("mlp", widths=(100,)),
    "emnist_dense": Network("mlp", widths=(200, 200)),
    "cnn": Network("cnn", ((32, 5, "VALID", True), (64, 5, "VALID", True)), (512,)),
    "simple_cnn": Network("simple_cnn", ((32, 3, "VALID", False), (64, 3, "VALID", True)), (128,)),
    "leaf_cnn": Network("leaf_cnn", ((32, 5, "SAME", True), (64, 5, "SAME", True)), (2048,)),
}
