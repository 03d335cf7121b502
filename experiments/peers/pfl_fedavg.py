"""pfl-research's FedAvg with PyTorch: its simulation, with one process or one for each core.

The clients' data sets are created beforehand with fixed batches, as pfl-research does not shuffle;
only the clients of the warm-up round are evaluated.

Settings: 'one thread', 'all threads', 'processes' (one thread each). Needs pfl and torch.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import socket
import subprocess
import sys
import time

import peer
import torch
from peer import Work
from torch import nn
from torch.nn import functional
from torch_network import build_network, set_threads, tensors


class Classifier(nn.Module):
    """The network with the loss for pfl-research."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def loss(self, images, labels):
        return functional.cross_entropy(self.network(images), labels)

    def metrics(self, images, labels):
        return {}


def simulate(work: Work) -> tuple[list[float], list[float]]:
    """Runs all rounds in this process, or with the other processes of its group.

    Returns:
      The seconds of each timed round, and its CPU time over all threads of this process.
    """
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    class Clock(TrainingProcessCallback):
        def __init__(self):
            self.ends, self.busy = [], []

        def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
            self.ends.append(time.perf_counter())
            self.busy.append(time.process_time())
            return False, Metrics()

    datasets = {
        client: PyTorchTensorDataset(tensors=each, user_id=client)
        for client, each in tensors(work).items()
    }
    clients = itertools.chain(itertools.chain(*work.cohorts), itertools.cycle(work.cohorts[0]))
    data = FederatedDataset(
        datasets.__getitem__,
        clients.__next__,
        {client: len(each) for client, each in datasets.items()},
    )
    model = Classifier(build_network(work))
    server_optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    clock = Clock()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=len(work.cohorts),
            evaluation_frequency=len(work.cohorts),
            train_cohort_size=len(work.cohorts[0]),
            val_cohort_size=None,
        ),
        SimulatedBackend(data, data, [WeightByDatapoints()]),
        PyTorchModel(model, torch.optim.SGD, server_optimizer),
        NNTrainHyperParams(
            local_num_epochs=1,
            local_learning_rate=work.learning_rate,
            local_batch_size=work.batch_size,
        ),
        NNEvalHyperParams(local_batch_size=None),
        [clock],
        send_metrics_to_platform=False,
    )
    return tuple(
        [after - before for before, after in itertools.pairwise(times)]
        for times in (clock.ends, clock.busy)
    )


def start_group(work: Work, processes: int) -> None:
    """Runs this file once for each process, with the environment variables of torchrun."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "benchmark"}
    group |= {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    members = []
    for rank in range(processes):
        names = {**group, "RANK": rank, "LOCAL_RANK": rank}
        environment = {**os.environ, **{name: str(value) for name, value in names.items()}}
        command = [sys.executable, __file__]
        member = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, text=True)
        json.dump(work._asdict(), member.stdin)
        member.stdin.close()
        members.append(member)
    if any([member.wait() for member in members]):
        raise RuntimeError("a process of the group failed")


def main() -> None:
    work = peer.read()
    torch.manual_seed(0)
    rank = os.environ.get("RANK")
    set_threads("one thread" if rank else work.setting)
    if work.setting == "processes" and rank is None:
        start_group(work, torch.get_num_threads())
        return
    seconds, of_threads = simulate(work)
    if rank in (None, "0"):
        peer.answer(importlib.metadata.version("pfl"), seconds, () if rank else of_threads)


if __name__ == "__main__":
    main()
