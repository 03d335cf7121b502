"""The task of predicting the chosen answer: beside a ranking, with a reference, and in configs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pfljax
from pfljax import models, tasks
from pfljax.core import Batch
from pfljax.errors import UserError
from pfljax.models import adapters
from pfljax.ops import preference
from pfljax.training.study import config as config_lib
from pfljax.training.study.task import build_task

MODEL = models.mlp((3,), 1, widths=(4,))
PARAMS = MODEL.init(jax.random.key(0))
DRAW = np.random.default_rng(0)
PAIRS = DRAW.normal(size=(5, 2, 3)).astype(np.float32)
MASK = np.array([True, True, True, True, False])
BATCH = Batch(jnp.array(PAIRS), jnp.zeros(5, jnp.int32), jnp.array(MASK))


def test_it_is_a_ranking_with_one_other_item():
    pairs, ranks = tasks.preference(MODEL), tasks.ranking(MODEL)
    (one, slope), (other, wanted) = (
        jax.value_and_grad(task.loss)(PARAMS, BATCH, jax.random.key(0)) for task in (pairs, ranks)
    )
    np.testing.assert_allclose(one, other, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), slope, wanted)
    found, of_ranks = (task.evaluate(PARAMS, BATCH, jax.random.key(0)) for task in (pairs, ranks))
    np.testing.assert_allclose(found["accuracy"], of_ranks["auc"])
    assert 0 < found["accuracy"] < 4, "some pairs right and some wrong"
    assert (pairs.score, pairs.more_is_better, pairs.num_features) == ("accuracy", True, 4)
    assert pairs.input_shape == (2, 3)


def test_margins_change_their_sign_with_the_order_and_ignore_the_bias():
    task = tasks.preference(MODEL, mean=np.float32([1, 0, 2]), std=2.0)
    margins = task.predict(PARAMS, BATCH.inputs)
    np.testing.assert_allclose(task.predict(PARAMS, BATCH.inputs[:, ::-1]), -margins, rtol=1e-5)
    shifted = {**PARAMS, "head": {**PARAMS["head"], "bias": PARAMS["head"]["bias"] + 3}}
    np.testing.assert_allclose(task.predict(shifted, BATCH.inputs), margins, atol=1e-6)
    standard = (PAIRS - [1, 0, 2]) / 2
    scores = MODEL.head(PARAMS, MODEL.features(PARAMS, standard.reshape(10, 3))).reshape(5, 2)
    np.testing.assert_allclose(margins, scores[:, 0] - scores[:, 1], rtol=1e-4, atol=1e-6)


def test_equal_answers_count_half_and_padding_nothing():
    same = jnp.array(PAIRS).at[:, 1].set(PAIRS[:, 0]).at[4].set(jnp.nan)
    found = tasks.preference(MODEL).evaluate(PARAMS, BATCH._replace(inputs=same), None)
    np.testing.assert_allclose(found["accuracy"], 2.0)
    np.testing.assert_allclose(found["loss"], 4 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize("loss", preference.LOSSES)
def test_a_loss_is_that_of_the_margin_over_the_reference(loss):
    reference = MODEL.init(jax.random.key(7))
    task = tasks.preference(MODEL, loss=loss, beta=0.3, smoothing=0.2, reference=reference)
    plain = tasks.preference(MODEL)
    margins = plain.predict(PARAMS, BATCH.inputs) - plain.predict(reference, BATCH.inputs)
    wanted = preference.LOSSES[loss](margins, 0.3, 0.2)
    np.testing.assert_allclose(task.losses(PARAMS, BATCH, None), wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(task.predict(PARAMS, PAIRS), plain.predict(PARAMS, PAIRS))


def test_a_hidden_map_trained_by_dpo_starts_at_the_reference():
    adapted = adapters.attach(MODEL, adapters.hidden_map(rank=2))
    task = tasks.preference(adapted, loss="dpo", beta=0.5, reference=PARAMS)
    personal = tasks.freeze(task, PARAMS, task.is_adapter)
    start = personal.init(jax.random.key(1))
    np.testing.assert_array_equal(
        personal.predict(start, PAIRS), tasks.preference(MODEL).predict(PARAMS, PAIRS)
    )
    loss, slope = jax.value_and_grad(personal.loss)(start, BATCH, jax.random.key(0))
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)
    moved = jax.tree.map(lambda x, g: x - 0.5 * g, start, slope)
    assert personal.loss(moved, BATCH, jax.random.key(0)) < loss - 1e-4


def test_networks_that_cannot_be_used():
    with pytest.raises(UserError, match="A preference takes no model with batch normalization"):
        tasks.preference(models.mlp_bn((2,), 1, widths=(2,)))
    with pytest.raises(UserError, match="one linear layer with one output"):
        tasks.preference(models.mlp((2,), 3, widths=(2,)))


def dataset():
    split = pfljax.data.Split(np.int32([0, 6]), np.int32([6, 6]))
    none = pfljax.data.Split(np.int32([6, 12]), np.int32([0, 0]))
    inputs = DRAW.normal(size=(12, 2, 3)).astype(np.float32)
    return pfljax.data.FederatedDataset(
        *("pairs", inputs, np.zeros(12, np.int32), split, none, split, 0), task="preference"
    )


def configured(**changes):
    config = config_lib.default_config()
    config.update(changes)
    return config


def test_a_config_chooses_the_loss_and_the_reference():
    adapter = {"name": "hidden_map", "rank": 2}
    settings = {"loss": "dpo", "beta": 0.5, "reference": True}
    make, frozen = build_task(configured(adapter=adapter, preference=settings), dataset())
    task = make(frozen)
    params = task.init(jax.random.key(0))
    batch = BATCH._replace(inputs=BATCH.inputs)
    np.testing.assert_allclose(task.loss(params, batch, jax.random.key(0)), np.log(2), rtol=1e-6)
    without = {"loss": "dpo", "beta": 0.5}
    make, frozen = build_task(configured(adapter=adapter, preference=without), dataset())
    assert abs(make(frozen).loss(params, batch, jax.random.key(0)) - np.log(2)) > 1e-4


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"loss": "dop"}, "Unknown loss .config.preference.loss. 'dop'"),
        ({"beta": 0.0}, "config.preference.beta is 0.0; it must be above 0"),
        ({"smoothing": 0.7}, "config.preference.smoothing is 0.7; it must be from 0 to 0.5"),
        ({"reference": True}, "config.preference.reference needs a given model: name a file"),
    ],
)
def test_a_config_that_cannot_be_used(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        build_task(configured(preference=settings), dataset())
