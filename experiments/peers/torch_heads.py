"""A linear head of each user in turn on cached features, in a plain PyTorch loop.

Settings: one thread or all, each with AdamW as a loop or fused. Needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import peer
import torch
from torch.nn.functional import cross_entropy
from torch_network import set_threads


class Users:
    """The features of all texts, and the ratings of all users."""

    def __init__(self, work: peer.Users):
        self.work = work
        draw = np.random.default_rng(0)
        self.features = torch.tensor(draw.normal(size=(work.texts, work.features))).float()
        users = len(work.cohorts[0])
        self.items = torch.tensor(draw.integers(0, work.texts, (users, work.ratings)))
        self.labels = torch.tensor(draw.integers(0, work.num_classes, (users, work.ratings)))

    def play(self, users: Sequence[int]) -> None:
        """Trains a new head for each user."""
        work, fused = self.work, "fused" in self.work.setting
        for user in users:
            head = torch.nn.Linear(work.features, work.num_classes)
            optimizer = torch.optim.AdamW(head.parameters(), lr=work.learning_rate, fused=fused)
            inputs, labels = self.features[self.items[user]], self.labels[user]
            for _ in range(work.steps):
                rows = torch.randint(work.ratings, (work.batch_size,))
                loss = cross_entropy(head(inputs[rows]), labels[rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()


def main() -> None:
    work = peer.read_users()
    torch.manual_seed(0)
    set_threads(work.setting)
    peer.answer(torch.__version__, *peer.time_rounds(work, Users(work).play))


if __name__ == "__main__":
    main()
