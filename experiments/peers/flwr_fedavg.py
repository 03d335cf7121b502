"""Flower's simulation of FedAvg with PyTorch: one actor for each core, a thread each.

The clients train as in `eager_pytorch.py`; Flower sends messages between them and the server, and
averages. Each actor generates the examples of all clients in the warm-up round. There are as many
nodes as clients in a cohort, and each message contains the index of the client that a node trains.

Settings: 'actors'. Needs flwr[simulation] and torch.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import pathlib
import sys
import warnings

import peer
import torch
from peer import Work

HERE = str(pathlib.Path(__file__).parent)


_MADE = []


def network_and_examples(work: Work) -> tuple:
    """Returns an actor's network and the examples of all clients, created at the first call."""
    if not _MADE:
        from torch_network import build_network, set_threads, tensors

        set_threads("one thread")
        _MADE[:] = build_network(work), tensors(work)
    return tuple(_MADE)


def main() -> None:
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    work = peer.read()
    seconds = []
    warnings.simplefilter("ignore")
    from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    clients, server = ClientApp(), ServerApp()

    @clients.train()
    def train(message, context):
        sys.path.insert(0, HERE)
        import flwr_fedavg
        from torch_network import train_one_epoch

        network, examples = flwr_fedavg.network_and_examples(work)
        client = message.content["config"]["client"]
        network.load_state_dict(message.content["arrays"].to_torch_state_dict())
        train_one_epoch(network, *examples[client], work)
        content = {
            "arrays": ArrayRecord(network.state_dict()),
            "metrics": MetricRecord({"num-examples": work.sizes[client]}),
        }
        return Message(content=RecordDict(content), reply_to=message)

    @server.main()
    def serve(grid, context):
        from torch_network import build_network

        strategy = FedAvg()
        arrays = ArrayRecord(build_network(work).state_dict())

        def play(cohort):
            nonlocal arrays
            nodes = list(grid.get_node_ids())
            messages = [
                Message(
                    content=RecordDict(
                        {"arrays": arrays, "config": ConfigRecord({"client": client})}
                    ),
                    message_type="train",
                    dst_node_id=node,
                )
                for node, client in zip(nodes, cohort, strict=True)
            ]
            replies = list(grid.send_and_receive(messages))
            arrays, _ = strategy.aggregate_train(1, replies)

        seconds.extend(peer.time_rounds(work, play)[0])

    cores = torch.get_num_threads()
    run_simulation(
        server,
        clients,
        num_supernodes=len(work.cohorts[0]),
        backend_config={
            "init_args": {"num_cpus": cores},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    peer.answer(importlib.metadata.version("flwr"), seconds)


if __name__ == "__main__":
    main()
