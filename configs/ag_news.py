"""AG News with label skew: 20 clients, Dirichlet(0.1), fastText on 8,000 words, batch 32.

Texts are truncated to 64 tokens, which 95 % of them do not exceed. 15 rounds of one local
epoch: three minutes for the six methods on two cores shared with other work.
`:textcnn`, `:lstm` and `:transformer` are much slower.

    python experiments/compare.py --config=configs/ag_news.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
"""

from pfljax.training.study.config import comparison_config


def get_config(model: str = "fasttext"):
    config = comparison_config(
        "ag_news",
        model,
        partition="dirichlet",
        rounds=15,
        eval_every=3,
        learning_rate=1.0,
        seeds=(0,),
    )
    config.batch_size = 32
    config.hparams.fedrep.head_epochs = 1
    config.data.options.ag_news.vocabulary = 8000
    config.data.options.ag_news.length = 64
    config.data.alpha = 0.1
    config.data.num_clients = 20
    return config
