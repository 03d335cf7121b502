"""FedAvg as an eager PyTorch loop, without a library around it.

The clients of a round train one after another, each from the server's model with plain SGD on its
own shuffled batches, and the server takes the average of their parameters, weighted by their
numbers of examples. That is the loop at the heart of every PyTorch library of personalized
federated learning, here without data loaders, files, copies of modules and logs. What is left is
the price of eager execution: a dispatch for each operation of each batch. A library that beats this
loop beats the libraries built on it.

Chosen because it measured fastest on a CPU: the step of SGD as one addition in place for each
parameter (torch.optim.SGD took a quarter longer for a round of the MLP, and about the same for the
CNN), convolutions in the channels-last layout, one gather for each epoch, whose result is cut into
batches that are views, one model for all clients, and gradients set to None.

Settings: 'one thread', 'all threads'. Needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import peer
import torch
from peer import Work
from torch_network import build_network, set_threads, tensors, train_one_epoch


class FedAvg:
    """The server, and the one model in which the clients train one after another."""

    def __init__(self, work: Work):
        self.work = work
        self.clients = tensors(work)
        self.model = build_network(work)
        self.parameters = list(self.model.parameters())
        self.server = [parameter.detach().clone() for parameter in self.parameters]

    def play(self, cohort: Sequence[int]) -> None:
        """Trains every client of the cohort and averages the results."""
        num_examples = sum(self.work.sizes[client] for client in cohort)
        average = [torch.zeros_like(parameter) for parameter in self.server]
        for client in cohort:
            with torch.no_grad():
                for parameter, start in zip(self.parameters, self.server, strict=True):
                    parameter.copy_(start)
            train_one_epoch(self.model, *self.clients[client], self.work)
            with torch.no_grad():
                for mean, parameter in zip(average, self.parameters, strict=True):
                    mean.add_(parameter, alpha=self.work.sizes[client] / num_examples)
        self.server = average


def main() -> None:
    work = peer.read()
    torch.manual_seed(0)
    set_threads(work.setting)
    peer.answer(torch.__version__, *peer.time_rounds(work, FedAvg(work).play))


if __name__ == "__main__":
    main()
