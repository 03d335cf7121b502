"""The rows of studies in which a client is a user: their networks, and what of them is private."""

import annotations
import jax
import pytest

from pfljax.errors import UserError
from pfljax.training.study import config_checks, experiment, personalization
from pfljax.training.study.task import build_task

TUNED = {"fedper": {"learning_rate": 0.7}, "ditto": {"learning_rate": 0.2, "lam": 0.3}}
PRIVATE = {  # of the made-up texts with three features
    "bias": {"head/bias_change": (2,)},
    "difference": {"head/kernel": (5, 2), "head/bias": (2,)},
    "difference_bias": {"head/bias_change": (2,)},
    "hidden_bias": {"head/bias_change": (2,)},
    "hidden_factors": {"head/ia3_input": (64,)},
    "user_token": {"body/Dense_0/bias_change": (64,)},
    "lora": {"body/Dense_0/lora_a": (3, 4), "body/Dense_0/lora_b": (4, 64)},
    "basis": {"body/Dense_0/coefficients": (16,)},
    "linear": {"head/kernel": (3, 2), "head/bias": (2,)},
    "hidden": {"head/kernel": (64, 2), "head/bias": (2,)},
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    root = tmp_path_factory.mktemp("popquorn")
    annotations.write(root, "popquorn")
    return root


@pytest.mark.parametrize("row", personalization.ROWS)
def test_a_row_has_its_private_part(directory, row):
    config = personalization.row_config("popquorn", row, rounds=1, batch_size=2, tuned={row: TUNED})
    config.data.dir, config.data.min_size = str(directory), 2
    config_checks.check(config)
    assert config.learning_rates.fedper == 0.7 and config.hparams.ditto.lam == 0.3
    assert config.data.split == "by_item"
    make, frozen = build_task(config, experiment.build_dataset(config))
    task = make(frozen)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    paths = {
        tuple(part.key for part in path): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(shapes)
    }
    private = {"/".join(path): shape for path, shape in paths.items() if task.is_head(path)}
    if row in PRIVATE:
        assert private == PRIVATE[row]
    # FedPer trains every other array for all users.
    assert frozen == () and ("fedper" in config.algorithms) <= (len(private) < len(paths))


def test_an_unknown_row():
    with pytest.raises(UserError, match="no row 'biased'; after the colon .* linear, bias, diff"):
        personalization.row_config("popquorn", "biased", rounds=1, batch_size=2, tuned={})
