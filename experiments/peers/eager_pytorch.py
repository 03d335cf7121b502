"""FedAvg as an eager PyTorch loop, without a library.

The clients of a round train one after another, each from the server's model with plain SGD on
shuffled batches, and the server averages their parameters, weighted by their numbers of examples.
PyTorch libraries for personalized federated learning run this loop too, in addition to data
loaders, files, copies of modules and logs. What remains here is the cost of eager execution: a
dispatch for each operation of each batch. The loop is therefore a lower bound of their time.

The following choices were fastest on a CPU: SGD as one in-place addition for each parameter
(torch.optim.SGD took a quarter longer for a round of the MLP, and about the same for the CNN),
convolutions in the channels-last layout, one gather for each epoch with batches as views of its
result, one model for all clients, and gradients set to None.

Settings: 'one thread', 'all threads'. Needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import peer
import torch
from peer import Work
from torch_network import build_network, set_threads, tensors, train_one_epoch


class FedAvg:
    """The server, and the model that is reused for all clients."""

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
