"""LoRA of each user in turn, with peft and transformers, in a plain PyTorch loop.

Each user gets a new adapter of a BERT with random frozen weights, which is removed after the last
step. The Trainer of transformers, which does more in each step, is not used. Settings: one thread
or all, each with two implementations of attention. Needs torch, transformers and peft.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import peer
import peft
import torch
import transformers
from torch_network import set_threads


class Users:
    """The frozen network, and the ratings of all users."""

    def __init__(self, work: peer.Users):
        self.work = work
        config = transformers.BertConfig(
            vocab_size=work.vocabulary,
            hidden_size=work.width,
            num_hidden_layers=work.layers,
            num_attention_heads=work.heads,
            intermediate_size=4 * work.width,
            max_position_embeddings=work.length,
            num_labels=work.num_classes,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="eager" if "eager" in work.setting else "sdpa",
        )
        self.base = transformers.BertForSequenceClassification(config)
        self.lora = peft.LoraConfig(
            task_type="SEQ_CLS",
            r=work.rank,
            lora_alpha=work.alpha,
            lora_dropout=0.0,
            target_modules=["query", "value"],
        )
        draw = np.random.default_rng(0)
        texts = draw.integers(1, work.vocabulary, (work.texts, work.length))
        texts[np.arange(work.length) >= draw.integers(8, work.length + 1, (work.texts, 1))] = 0
        self.texts = torch.tensor(texts)
        self.mask = (self.texts != 0).long()
        users = len(work.cohorts[0])
        self.items = torch.tensor(draw.integers(0, work.texts, (users, work.ratings)))
        self.labels = torch.tensor(draw.integers(0, work.num_classes, (users, work.ratings)))

    def play(self, users: Sequence[int]) -> None:
        """Trains a new adapter for each user."""
        for user in users:
            model = peft.get_peft_model(self.base, self.lora)
            model.train()
            trained = [each for each in model.parameters() if each.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=self.work.learning_rate)
            for _ in range(self.work.steps):
                rows = torch.randint(self.work.ratings, (self.work.batch_size,))
                items = self.items[user, rows]
                loss = model(
                    input_ids=self.texts[items],
                    attention_mask=self.mask[items],
                    labels=self.labels[user, rows],
                ).loss
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            self.base = model.unload()


def main() -> None:
    work = peer.read_users()
    torch.manual_seed(0)
    set_threads(work.setting)
    versions = f"peft {peft.__version__}, torch {torch.__version__}"
    peer.answer(versions, *peer.time_rounds(work, Users(work).play))


if __name__ == "__main__":
    main()
