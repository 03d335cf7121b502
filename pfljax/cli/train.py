r"""Trains and evaluates one method.

    python experiments/train.py --config=configs/quickstart.py --workdir=WORKDIR \
        --config.algorithm=ditto --config.hparams.ditto.lam=0.5

The command writes `config.json`, `metrics.jsonl`, `clients.npz`, `checkpoints/`, `result.json` and
TensorBoard events to the work directory. With `--resume` it continues after a preemption.
"""

from __future__ import annotations

from absl import flags

from pfljax.cli import app
from pfljax.report import tables
from pfljax.training import single


def define_flags() -> None:
    """Defines the flags of this command."""
    app.define_study()
    flags.DEFINE_bool("resume", False, "Resume from the latest intact checkpoint, if any.")


def main() -> None:
    """Runs the command."""
    config, directory = app.study()
    with app.progress(config.rounds) as add_bar:
        result = single.run(config, directory, resume=flags.FLAGS.resume, add_progress=add_bar)
    score = result["score_name"]
    for model, label in {"personal": "personalized", "global": "global"}.items():
        found = tables.scores_of(result, model)
        if found is not None:
            app.say(
                f"{config.algorithm}, {label} model: test {tables.shown(score, found['last'])} "
                f"after {config.rounds} rounds, {tables.shown(score, found['worst_decile'])} for "
                "the worst decile of the clients"
            )
    app.say(f"results in {directory}")
