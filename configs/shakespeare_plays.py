"""Shakespeare by speaking role, in nine groups by play: an LSTM of width 32, 25 roles, 12 a round.

Roles with 150 windows of 80 characters or more. The group of a role is the play with most of its
text: Coriolanus (0), Richard III (1), Richard II (2), Romeo and Juliet (3), Henry VI (4), The
Winter's Tale (5), Measure for Measure (6), The Taming of the Shrew (7), The Tempest (8, Prospero
alone). 20 rounds of one local epoch, batch 20, Adam. Rounds are chosen by the loss per character,
whose exponential is the perplexity.

    python experiments/compare.py --config=configs/shakespeare_plays.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
"""

from pfljax.training.study.config import comparison_config

# In the order of the roles' first speeches.
_PLAYS = "0001114412233344555666778"


def get_config():
    config = comparison_config(
        "shakespeare",
        "lstm_lm",
        rounds=20,
        eval_every=10,
        # Chosen for each method on validation examples, see docs/results/recent_methods_figures.md.
        learning_rate=0.03,
        seeds=(0, 1),
    )
    config.algorithms = ("local", "fedavg", "fedavg_ft", "group_pfl")
    config.score = "loss"
    config.batch_size = 20
    config.checkpoint_every = 0
    config.client_optimizer.name = "adam"
    config.cohort.size = 12
    config.data.min_size = 150
    config.model.widths = (32,)
    config.engine.clients_per_chunk = "8"
    config.hparams.group_pfl.update({"groups": 9, "group_of_clients": ",".join(_PLAYS)})
    return config
