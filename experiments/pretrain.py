"""Trains a config's network on the server's examples, for methods that start from a trained one.

    python experiments/pretrain.py --config=configs/pfedpg.py --workdir=WORKDIR --epochs=30 \
        --rate=0.003 --config.data.dir=DIRECTORY

The examples are those that the config gives to the server and to no client
(`config.data.server_fraction`), a tenth of them for testing. Adam, with the config's batch size.
Writes WORKDIR/params.safetensors, for `config.init_from` or `config.adapter.base`, and prints its
test accuracy. With `config.seeds_vary='training'` no seed of a comparison gives these examples to a
client; otherwise each seed has other examples at the server, and the file fits `config.seed` only.
"""

from __future__ import annotations

import numpy as np
from absl import flags

from pfljax import api, metrics
from pfljax.cli import app
from pfljax.data.dataset import FederatedDataset, Split
from pfljax.errors import UserError
from pfljax.models import params_file
from pfljax.training.study import config_runs
from pfljax.training.study.experiment import build_dataset

_EPOCHS = flags.DEFINE_integer("epochs", 30, "Number of epochs.", lower_bound=1)
_RATE = flags.DEFINE_float("rate", 0.003, "Learning rate of Adam.", lower_bound=0)


def of_server(dataset: FederatedDataset, seed: int) -> FederatedDataset:
    """Returns the examples of the server as those of one client, a tenth of them for testing.

    Args:
      dataset: The data set.
      seed: The seed of the order of the examples.

    Raises:
      UserError: The server has no examples.
    """
    if dataset.server is None or len(dataset.server.targets) < 10:
        raise UserError(
            "The server has too few examples; set config.data.server_fraction or "
            "config.data.server_name."
        )
    if isinstance(dataset.server.inputs, dict):
        raise UserError("Inputs that are a dict cannot be used here; choose another data set.")
    order = np.random.default_rng(seed).permutation(len(dataset.server.targets))
    train = len(order) - len(order) // 10

    def split(start, size):
        return Split(np.array([start], np.int32), np.array([size], np.int32))

    return dataset._replace(
        inputs=dataset.server.inputs[order],
        targets=dataset.server.targets[order],
        train=split(0, train),
        validation=split(train, 0),
        test=split(train, len(order) - train),
        num_unseen=0,
        client_names=(),
        server=None,
        groups=None,
    )


def main() -> None:
    """Runs the script."""
    config, directory = app.study()
    config = config_runs.of_run(config, "fedavg", config.seed)
    public = of_server(build_dataset(config).gathered(), config.seed)
    run = api.fit(
        "fedavg",
        public,
        workdir=directory / "training",
        model=config.model.to_dict(),
        client_optimizer={"name": "adam", "learning_rate": _RATE.value},
        batch_size=config.batch_size,
        rounds=_EPOCHS.value,
        eval_every=_EPOCHS.value,
        seed=config.seed,
    )
    path = directory / "params.safetensors"
    params_file.save(path, run.global_model().params)
    name = run.result["score_name"]
    score = run.result[f"global_{name}"]["last"]
    shown = f"{100 * score:.2f} %" if metrics.is_percent(name) else f"{score:.4g}"
    app.say(f"{path}: {len(public.targets)} examples of the server, test {name} {shown}")


if __name__ == "__main__":
    app.run(main, app.define_study)
