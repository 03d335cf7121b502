"""HAR

    python experiments/compare.py --config=configs/har.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
"""

from pfljax.training.config import default_config


def get_config(model: str = "mlp"):
    config = default_config()
    config.seeds = (0, 1, 2)
    config.algorithms = ("local", "fedavg", "fedavg_ft", "ditto", "fedper", "fedrep")

    config.rounds = 60
    config.eval_every = 5
    config.client_optimizer.learning_rate = 0.02

    config.data.name = "har"
    config.data.partition = "natural"
    config.model.name = model
    return config
