"""FEMNIST: 100 writers, 62 classes of digits and letters, the 4-layer CNN, batch 10.

10 of the writers are held out to evaluate the methods on new clients. 1,000 rounds of one local
epoch with 10 writers, so each of 90 writers trains in about 111 of them. Learning rates were chosen
for each method on validation examples of other writers, see docs/results/data_sets.md. `:leaf_cnn`
is LEAF's CNN, with 6.6 million parameters and ten times the time for a round.

    python experiments/compare.py --config=configs/femnist.py --workdir=WORKDIR \
        --config.data.dir=DIRECTORY
"""

from pfljax.training.study.config import comparison_config


def get_config(model: str = "cnn"):
    config = comparison_config(
        "femnist",
        model,
        rounds=1000,
        eval_every=100,
        learning_rate=0.15,
        # Ditto and FedPer diverge with 0.15 after some hundred rounds.
        learning_rates=dict.fromkeys(("fedavg_ft", "ditto", "fedper"), 0.05),
        seeds=(0,),
    )
    config.hparams.fedrep.head_epochs = 1
    config.hparams.fedavg_ft.fine_tuning_epochs = 5
    config.cohort.size = 10
    config.data.num_owners = 100
    config.data.unseen_fraction = 0.1
    return config
