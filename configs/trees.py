"""Boosted trees on tabular data, beside networks: exam scores of `school`, or voices, `parkinsons`.

The networks with their learning rates, rounds and clients are those of `configs/school.py` and
`configs/parkinsons.py`. Federated GBDT grows 30 trees of three levels, after a round for the
quantiles; its learning rate and the number of trees that a client adds were chosen on validation
examples, see `docs/results/trees.md`. With `--config.hparams.fedgbdt.own_trees=0` all clients
deploy the same trees. 45 CPU seconds for three seeds.

    python experiments/compare.py --config=configs/trees.py:school --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
    python experiments/compare.py --config=configs/trees.py:parkinsons --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
"""

import pathlib
import runpy

HERE = pathlib.Path(__file__).parent
_OWN_TREES = {"school": 2, "parkinsons": 10}


def get_config(data: str = "school"):
    config = runpy.run_path(str(HERE / f"{data}.py"))["get_config"]()
    config.algorithms = ("local", "fedavg", "fedavg_ft", "ditto", "fedgbdt")
    config.hparams.fedgbdt.rate = 0.3
    config.hparams.fedgbdt.own_trees = _OWN_TREES[data]
    return config
