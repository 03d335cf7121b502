"""FedAvg as an eager PyTorch loop: the opponent that pfljax's speed is measured against.

What it is: one round of FedAvg after another. In a round the clients train one after another, each
from the server's model with plain SGD on its own shuffled batches, and the server takes the average
of their parameters, weighted by their numbers of examples.

Why it is the opponent: this is the loop at the heart of every PyTorch library of personalized
federated learning, here without the overheads that the libraries put around it. Each client's data
is one normalized float32 tensor in memory; there is no data loader, no file, no copy of a module
and no logging. What is left is the price of eager execution: one dispatch per operation per batch.
A library that beats this loop beats the libraries built on it.

What was chosen because it measured fastest on a CPU: the SGD step written as one in-place addition
per parameter (torch.optim.SGD, with `--sgd=loop|foreach|fused`, took a quarter longer per round on
the MLP and about the same on the CNN), convolutions in torch's channels-last layout, one gather per
epoch whose result is cut into batches that are views, one model object for all clients, and
gradients set to None. Which number of threads is best depends on model and machine, so `--threads`
takes a list and the best one counts.

The data is synthetic (uniform pixels, random labels): speed does not depend on what it shows.
The default sizes are the training sets of the MNIST example that comes with PFLlib.

Needs torch, which the extra `[peers]` installs. Run it from the root of the repository:

    python experiments/peers/eager_pytorch.py --model=mlp --rounds=5 --threads=1,2
    python experiments/peers/eager_pytorch.py --model=cnn --warmup_examples=3000 --max_seconds=60

It prints one JSON object on the standard output.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

PFLLIB_MNIST_SIZES = (
    1972, 374, 1222, 1905, 1437, 4641, 942, 951, 2700, 3004,
    2337, 2829, 2709, 1600, 4297, 4086, 2721, 4239, 3949, 4577,
)  # fmt: skip
NUM_CLASSES = 10
IMAGE_SHAPE = (1, 28, 28)
TRAIN_EXAMPLES_PER_TEST_EXAMPLE = 3  # each client's examples are split 75 to 25
EVALUATION_BATCH_SIZE = 1000
TORCH_OPTIM_SGD = {
    "loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


@dataclass(frozen=True)
class Examples:
    """Labelled images of one client, as one tensor each."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.labels.shape[0]

    def head(self, num_examples: int) -> Examples:
        return Examples(self.images[:num_examples], self.labels[:num_examples])


def build_model(name: str) -> nn.Module:
    """The model called `name`, with torch's default initialisation; it returns logits."""
    if name == "mlp":
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(784, 100),
            nn.ReLU(),
            nn.Linear(100, NUM_CLASSES),
        )
    if name == "cnn":
        return nn.Sequential(
            nn.Conv2d(1, 32, kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(1024, 512),
            nn.ReLU(),
            nn.Linear(512, NUM_CLASSES),
        )
    raise ValueError(f"no model is called {name!r}")


def synthetic_examples(num_examples: int, generator: torch.Generator) -> Examples:
    """Uniform pixels in [-1, 1) and uniform labels."""
    images = torch.rand((num_examples, *IMAGE_SHAPE), generator=generator).mul_(2).sub_(1)
    labels = torch.randint(NUM_CLASSES, (num_examples,), generator=generator)
    return Examples(images, labels)


class InPlaceSGD:
    """Plain SGD without the bookkeeping of torch.optim."""

    def __init__(self, parameters: Sequence[nn.Parameter], learning_rate: float) -> None:
        self.parameters = parameters
        self.learning_rate = learning_rate

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for parameter in self.parameters:
            parameter.add_(parameter.grad, alpha=-self.learning_rate)


def build_optimizer(
    sgd: str, parameters: Sequence[nn.Parameter], learning_rate: float
) -> InPlaceSGD | torch.optim.SGD:
    if sgd == "in_place":
        return InPlaceSGD(parameters, learning_rate)
    return torch.optim.SGD(parameters, lr=learning_rate, **TORCH_OPTIM_SGD[sgd])


class FedAvg:
    """The server, and the one model object in which the clients train one after another."""

    def __init__(
        self, model: nn.Module, batch_size: int, learning_rate: float, sgd: str, seed: int
    ) -> None:
        self.model = model.to(memory_format=torch.channels_last)  # concerns convolutions only
        self.batch_size = batch_size
        self.parameters = list(model.parameters())
        self.server = [parameter.detach().clone() for parameter in self.parameters]
        # Plain SGD keeps no state, so that one optimizer serves all clients.
        self.optimizer = build_optimizer(sgd, self.parameters, learning_rate)
        self.generator = torch.Generator().manual_seed(seed)

    def round(self, clients: Sequence[Examples]) -> None:
        """Train every client for one epoch from the server's model and average the results."""
        num_examples = sum(len(client) for client in clients)
        average = [torch.zeros_like(parameter) for parameter in self.server]
        for client in clients:
            self._download()
            self._train_one_epoch(client)
            weight = len(client) / num_examples
            with torch.no_grad():
                for mean, parameter in zip(average, self.parameters, strict=True):
                    mean.add_(parameter, alpha=weight)
        self.server = average

    @torch.no_grad()
    def accuracy(self, clients: Sequence[Examples]) -> float:
        """The share of all clients' examples that the server's model classifies correctly."""
        self._download()
        num_correct = 0
        for client in clients:
            for images, labels in zip(
                client.images.split(EVALUATION_BATCH_SIZE),
                client.labels.split(EVALUATION_BATCH_SIZE),
                strict=True,
            ):
                num_correct += int((self.model(images).argmax(dim=1) == labels).sum())
        return num_correct / sum(len(client) for client in clients)

    @torch.no_grad()
    def _download(self) -> None:
        for parameter, server_parameter in zip(self.parameters, self.server, strict=True):
            parameter.copy_(server_parameter)

    def _train_one_epoch(self, client: Examples) -> None:
        """One pass over the client's shuffled examples; a last, smaller batch is kept."""
        order = torch.randperm(len(client), generator=self.generator)
        for images, labels in zip(
            client.images[order].split(self.batch_size),
            client.labels[order].split(self.batch_size),
            strict=True,
        ):
            self.optimizer.zero_grad()
            functional.cross_entropy(self.model(images), labels).backward()
            self.optimizer.step()


def first_examples(clients: Sequence[Examples], limit: int | None) -> list[Examples]:
    """The clients in order until `limit` examples are reached, the last one cut; None for all."""
    if limit is None:
        return list(clients)
    chosen = []
    for client in clients:
        if limit <= 0:
            break
        chosen.append(client.head(limit))
        limit -= len(chosen[-1])
    return chosen


def measure(
    arguments: argparse.Namespace,
    num_threads: int,
    train: Sequence[Examples],
    test: Sequence[Examples],
) -> dict[str, object]:
    """Time rounds on `num_threads` threads, after a warm-up that is not counted."""
    torch.set_num_threads(num_threads)
    torch.manual_seed(arguments.seed)
    fedavg = FedAvg(
        build_model(arguments.model),
        arguments.batch_size,
        arguments.learning_rate,
        arguments.sgd,
        arguments.seed,
    )
    warmup = first_examples(train, arguments.warmup_examples)
    if warmup:
        fedavg.round(warmup)
    if arguments.evaluate:
        fedavg.accuracy(test)

    seconds_per_round: list[float] = []
    evaluation_seconds: list[float] = []
    accuracies: list[float] = []
    while len(seconds_per_round) < arguments.rounds:
        start = time.perf_counter()
        fedavg.round(train)
        trained = time.perf_counter()
        if arguments.evaluate:
            accuracies.append(fedavg.accuracy(test))
        end = time.perf_counter()
        seconds_per_round.append(end - start)
        evaluation_seconds.append(end - trained)
        if arguments.max_seconds is not None and sum(seconds_per_round) >= arguments.max_seconds:
            break
    if not all(bool(parameter.isfinite().all()) for parameter in fedavg.server):
        raise RuntimeError("the server's model is not finite: choose a lower learning rate")

    median = statistics.median(seconds_per_round)
    result: dict[str, object] = {
        "seconds_per_round": seconds_per_round,
        "median": median,
        "examples_per_second": sum(arguments.sizes) / median,
    }
    if arguments.evaluate:  # evaluation is part of seconds_per_round
        result["median_evaluation_seconds"] = statistics.median(evaluation_seconds)
        result["accuracies"] = accuracies
    return result


def positive_integers(text: str) -> list[int]:
    """The positive integers of a comma-separated list or of a JSON list."""
    numbers = json.loads(text if text.lstrip().startswith("[") else f"[{text}]")
    if not numbers or not all(isinstance(n, int) and n > 0 for n in numbers):
        raise argparse.ArgumentTypeError(f"not a list of positive integers: {text}")
    return numbers


def positive_integer(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"not a positive integer: {text}")
    return number


def parse_arguments(command_line: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=("mlp", "cnn"), default="mlp")
    parser.add_argument(
        "--sizes",
        type=positive_integers,
        default=list(PFLLIB_MNIST_SIZES),
        help="JSON list: the number of training examples of each client",
    )
    parser.add_argument("--batch_size", type=positive_integer, default=10)
    parser.add_argument("--learning_rate", type=float, default=0.005)
    parser.add_argument("--rounds", type=positive_integer, default=5)
    parser.add_argument(
        "--threads",
        type=positive_integers,
        default=[1, 2],
        help="numbers of threads to measure, separated by commas",
    )
    parser.add_argument(
        "--evaluate",
        action="store_true",
        help="test the new server model on every client in each round, and count the time",
    )
    parser.add_argument(
        "--sgd",
        choices=("in_place", *TORCH_OPTIM_SGD),
        default="in_place",
        help="the SGD step: in place by hand, or one of the implementations of torch.optim.SGD",
    )
    parser.add_argument(
        "--warmup_examples",
        type=int,
        default=None,
        help="cut the warm-up, otherwise a whole round, to this many examples",
    )
    parser.add_argument(
        "--max_seconds",
        type=float,
        default=None,
        help="start no further timed round after this time (per number of threads)",
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(command_line)


def main(command_line: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(command_line)
    generator = torch.Generator().manual_seed(arguments.seed)
    train = [synthetic_examples(size, generator) for size in arguments.sizes]
    test = [
        synthetic_examples(max(1, size // TRAIN_EXAMPLES_PER_TEST_EXAMPLE), generator)
        for size in arguments.sizes
    ]
    threads = {str(n): measure(arguments, n, train, test) for n in arguments.threads}
    best_threads = min(threads, key=lambda n: threads[n]["median"])
    print(
        json.dumps(
            {
                "peer": "eager PyTorch",
                "torch": torch.__version__,
                "model": arguments.model,
                "num_parameters": sum(p.numel() for p in build_model(arguments.model).parameters()),
                "num_clients": len(arguments.sizes),
                "num_examples": sum(arguments.sizes),
                "batch_size": arguments.batch_size,
                "learning_rate": arguments.learning_rate,
                "sgd": arguments.sgd,
                "evaluate": arguments.evaluate,
                "threads": threads,
                "best_threads": int(best_threads),
                "median_seconds_per_round": threads[best_threads]["median"],
            }
        )
    )


if __name__ == "__main__":
    main()
