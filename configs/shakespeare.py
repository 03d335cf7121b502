"""Shakespeare by speaking role: the next character, 65 clients, an LSTM of width 64, 10 a round.

Roles with 60 windows of 80 characters or more; each role's last windows are tested. 25 rounds of
one local epoch, batch 10, Adam, so a role trains in about four of them. `:transformer_lm`
uses a Transformer.

    python experiments/compare.py --config=configs/shakespeare.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
"""

from pfljax.training.study.config import comparison_config


def get_config(model: str = "lstm_lm"):
    config = comparison_config(
        "shakespeare",
        model,
        rounds=25,
        learning_rate=0.03,
        seeds=(0,),
    )
    config.client_optimizer.name = "adam"
    config.hparams.fedrep.head_epochs = 1
    config.cohort.size = 10
    config.data.min_size = 60
    if model == "lstm_lm":
        config.model.widths = (64,)
    return config
