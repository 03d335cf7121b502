"""The values of a sweep, in the types of their keys."""

import pytest

from pfljax.errors import UserError
from pfljax.training import sweep
from pfljax.training.study.config import default_config


@pytest.mark.parametrize(
    "text, key, values",
    [
        ("hparams.ditto.lam=1,2", "hparams.ditto.lam", [1.0, 2.0]),
        ("learning_rate=1,0.5", "learning_rates.fedavg", [1.0, 0.5]),
        ("client_optimizer.clip_norm=1,10", "client_optimizer.clip_norm", [1.0, 10.0]),
        ("client_optimizer.nesterov=true,false", "client_optimizer.nesterov", [True, False]),
    ],
)
def test_values_have_the_type_of_the_key_also_if_it_is_not_set(text, key, values):
    found = sweep.parse(text, default_config())
    assert found == (key, values) and [type(v) for v in found[1]] == [type(v) for v in values]


def test_a_word_is_no_norm():
    with pytest.raises(UserError, match="clip_norm takes values such as 0.05"):
        sweep.parse("client_optimizer.clip_norm=large", default_config())
