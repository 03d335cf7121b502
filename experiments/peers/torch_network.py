"""Network, data, local training and threads for baselines in PyTorch."""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from peer import Work, examples
from torch import Tensor, nn
from torch.nn import functional


def build_network(work: Work) -> nn.Sequential:
    """Returns the network, `[B, c, H, W]` to logits `[B, C]`, in the channels-last layout."""
    *sides, channels = work.shape
    layers = []
    for features, size, padding, pooled in work.convolutions:
        margin = size // 2 if padding == "SAME" else 0
        layers += [nn.Conv2d(channels, features, size, padding=margin), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pooled else []
        sides = [(side + 2 * margin - size + 1) // (2 if pooled else 1) for side in sides]
        channels = features
    layers.append(nn.Flatten())
    inputs = math.prod(sides) * channels
    for width in work.widths:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    layers.append(nn.Linear(inputs, work.num_classes))
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def tensors(work: Work) -> dict[int, tuple[Tensor, Tensor]]:
    """Returns the examples of every client that takes part, `[n, c, H, W]` and `[n]` int64."""
    return {
        client: (to_channels(x), torch.from_numpy(y)) for client, (x, y) in examples(work).items()
    }


def to_channels(images: np.ndarray) -> Tensor:
    """Returns `[n, H, W, c]` as `[n, c, H, W]`, which is then in the channels-last layout."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def train_one_epoch(network: nn.Module, images: Tensor, labels: Tensor, work: Work) -> None:
    """Trains one epoch on shuffled examples with plain SGD, including a partial last batch."""
    parameters = list(network.parameters())
    order = torch.randperm(len(labels))
    size = work.batch_size
    batches = zip(images[order].split(size), labels[order].split(size), strict=True)
    for some_images, some_labels in batches:
        for parameter in parameters:
            parameter.grad = None
        functional.cross_entropy(network(some_images), some_labels).backward()
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(parameter.grad, alpha=-work.learning_rate)


def set_threads(setting: str) -> None:
    """Sets the number of torch's threads: 'one thread', or all cores for any other setting."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(1 if setting.startswith("one thread") else cores)
