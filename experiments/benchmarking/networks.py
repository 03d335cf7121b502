"""Architectures, told so that every system can build them, and their arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple


class Layer(NamedTuple):
    """A matrix product: of a dense layer, or of a convolution's kernel with every window.

    Attributes:
      inputs: entries that are summed up for one output.
      outputs: features.
      places: how often one example uses the kernel; 1 for a dense layer.
    """

    inputs: int
    outputs: int
    places: int


class Network(NamedTuple):
    """An architecture: ReLU after all layers but the last.

    Attributes:
      model: its name in pfljax.
      convolutions: of each the features, the kernel's size, the padding and whether maxima of 2x2
        follow.
      widths: of the dense layers before the last one.
    """

    model: str
    convolutions: tuple[tuple[int, int, str, bool], ...] = ()
    widths: tuple[int, ...] = ()

    def config(self) -> dict:
        """Returns the model's keys in a config."""
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
        """Returns the additions and multiplications for the gradient of one example.

        Counted are the matrix products as direct sums, whatever form computes them: forward, for
        the kernels' gradients, and for the inputs' gradients of all layers but the first.
        """
        layers = self.layers(shape, num_classes)
        products = [2 * layer.inputs * layer.outputs * layer.places for layer in layers]
        return 3 * sum(products) - products[0]


NETWORKS = {
    "logistic": Network("logistic"),
    "mlp": Network("mlp", widths=(100,)),
    "emnist_dense": Network("mlp", widths=(200, 200)),
    "cnn": Network("cnn", ((32, 5, "VALID", True), (64, 5, "VALID", True)), (512,)),
    "simple_cnn": Network("simple_cnn", ((32, 3, "VALID", False), (64, 3, "VALID", True)), (128,)),
    "leaf_cnn": Network("leaf_cnn", ((32, 5, "SAME", True), (64, 5, "SAME", True)), (2048,)),
}
