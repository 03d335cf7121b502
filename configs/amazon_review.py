"""AR

    python experiments/compare.py --config=configs/amazon_review.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
"""

from pfljax.training.config import default_config


def get_config(model: str = "mlp"):
    config = default_config()
    config.seeds = (0, 1, 2)
    config.algorithms = ("local", "fedavg", "fedavg_ft", "ditto", "fedper", "fedrep")

    config.rounds = 20
    config.eval_every = 2
    config.client_optimizer.learning_rate = 0.01

    config.data.name = "amazon_review"
    config.data.partition = "natural"
    config.model.name = model
    return config
