"""The task of recommendation: losses and metrics by hand, its config, and a federated round."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pfljax
from pfljax import models, tasks
from pfljax.core import Batch
from pfljax.data import FederatedDataset, Split
from pfljax.errors import UserError
from pfljax.training.study import config as config_lib
from pfljax.training.study.task import build_task

TAGS, SIZES = 3, (7, 4, 6)
# Rows of id, rating, attribute: the chosen item, another one, none, and an item of the history.
EXAMPLE = [[1, 0, 2], [2, 0, 5], [0, 0, 0], [3, 2, 1]]
MODEL = models.MODELS["unimp"]((3,), TAGS, vocabulary=SIZES, width=4, history=2, heads=1)
INPUTS = jnp.array([EXAMPLE, EXAMPLE, EXAMPLE], jnp.int32)
BATCH = Batch(INPUTS, jnp.array([3.0, 5.0, 1.0]), jnp.array([True, True, False]))
# Scores of four rows, of which the last two are no choices; the rating; logits of three tags.
OUTPUTS = jnp.array(
    [
        [0.0, 1.0, 9.0, 9.0, 0.5, 0.0, 2.0, 0.0],
        [2.0, 2.0, 9.0, 9.0, 1.5, 1.0, -1.0, 0.0],
        [np.nan] * 8,
    ]
)


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def test_the_loss_is_the_weighted_sum_of_three():
    about = dict(target_mean=2.0, target_std=2.0)  # the ratings 3 and 5 are 0.5 and 1.5
    of_choice = np.array([np.log1p(np.e), np.log(2)])
    focal = (1 - np.exp(-of_choice)) ** 2 * of_choice
    # The chosen item has the tag 2 of 1 to 3, whose logit is the second one.
    of_tags = -np.array(
        [
            [log_sigmoid(0), log_sigmoid(2), log_sigmoid(0)],
            [log_sigmoid(-1), log_sigmoid(-1), log_sigmoid(0)],
        ]
    )
    errors = np.zeros(2)
    for gamma, choice, of_tag in (
        (0.0, of_choice, of_tags),
        (2.0, focal, (1 - np.exp(-of_tags)) ** 2 * of_tags),
    ):
        for weights in ((1, 0, 0), (0, 0, 1), (2, 0.5, 3)):
            named = dict(zip(("next_item", "rating", "tags"), weights, strict=True))
            task = tasks.recommendation(MODEL, num_classes=TAGS, gamma=gamma, **named, **about)
            wanted = weights[0] * choice + weights[1] * errors + weights[2] * of_tag.mean(axis=1)
            found = task.output_losses(OUTPUTS, BATCH)
            np.testing.assert_allclose(found[:2], wanted, rtol=1e-5)
    away = OUTPUTS.at[:, 4].add(jnp.array([1.0, -2.0, 0.0]))
    task = tasks.recommendation(
        MODEL, num_classes=TAGS, next_item=0.0, rating=0.5, tags=0.0, **about
    )
    np.testing.assert_allclose(task.output_losses(away, BATCH)[:2], [0.5, 2.0], rtol=1e-6)


def test_metrics_count_choices_only():
    task = tasks.recommendation(MODEL, num_classes=TAGS, target_mean=2.0, target_std=2.0)
    found = task.metrics(OUTPUTS.at[0, 4].add(1.0), BATCH)
    # One other choice is ahead in the first example; it is equal in the second one.
    gains = [1 / np.log2(3), 1 / np.log2(2.5)]
    np.testing.assert_allclose(found["ndcg"], sum(gains), rtol=1e-6)
    assert found["hit"] == 2 and found["tag_precision"] == 1
    np.testing.assert_allclose(found["rating_mae"], 2.0, rtol=1e-6)
    assert np.isfinite(found["loss"]) and (task.score, task.num_classes) == ("ndcg", 0)
    assert task.more_is_better and "loss" in task.lower_is_better


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_certain_predictions_have_a_finite_gradient(gamma):
    task = tasks.recommendation(MODEL, num_classes=TAGS, gamma=gamma)
    certain = jnp.zeros((3, 8)).at[:, 0].set(500.0).at[:, 6].set(500.0).at[:, 5].set(-500.0)
    slope = jax.grad(lambda x: task.output_losses(x, BATCH).sum())(certain)
    assert jnp.isfinite(slope).all()


def dataset():
    """Four clients, each with five examples of a choice of two and a history of two."""
    draw = np.random.default_rng(0)
    items = np.array(
        [[0, 0, 0], *([film, level, 1 + film % 5] for level in range(4) for film in range(1, 7))],
        np.int32,
    )
    films = np.array([draw.permutation(6)[:4] for _ in range(20)])
    levels = np.concatenate([np.zeros((20, 2), int), draw.integers(1, 4, (20, 2))], axis=1)
    starts = 5 * np.arange(4, dtype=np.int32)
    sizes = np.ones(4, np.int32)
    return FederatedDataset(
        name="toy",
        inputs=(1 + 6 * levels + films).astype(np.int32),
        targets=draw.integers(1, 6, 20).astype(np.float32),
        train=Split(starts, 3 * sizes),
        validation=Split(starts + 3, sizes),
        test=Split(starts + 4, sizes),
        num_classes=TAGS,
        task="recommendation",
        vocabulary=SIZES,
        target_mean=3.0,
        target_std=1.5,
        items=items,
    )


def configured(**changes):
    config = config_lib.default_config()
    config.model = {"name": "unimp", "width": 4, "history": 2, "heads": 1}
    config.recommendation.update(changes)
    return config


def test_a_config_sets_the_weights():
    data = dataset()
    make, frozen = build_task(configured(tags=0.25, gamma=0.0), data)
    task = make(frozen)
    wanted = tasks.recommendation(
        MODEL, num_classes=TAGS, tags=0.25, gamma=0.0, target_mean=3.0, target_std=1.5
    )
    params = task.init(jax.random.key(1))
    batch = Batch(data.items[data.inputs[:3]], data.targets[:3], np.ones(3, bool))
    np.testing.assert_array_equal(
        *(each.losses(params, batch, jax.random.key(0)) for each in (task, wanted))
    )
    with pytest.raises(UserError, match="config.recommendation.rating is -1.0"):
        build_task(configured(rating=-1.0), data)
    with pytest.raises(UserError, match="all its weights are 0"):
        build_task(configured(next_item=0.0, rating=0.0, tags=0.0), data)
    config = configured()
    config.model.history = 9
    with pytest.raises(UserError, match="config.model.history is 9, but examples have 4 items"):
        build_task(config, data)


def test_methods_train_it_unchanged():
    data = dataset()
    for method in ("fedavg", "local"):
        settings = dict(rounds=4, eval_every=1, learning_rate=0.3, batch_size=3)
        run = pfljax.fit(method, data, config=configured(), **settings)
        losses = run.per_round()["train/loss"].dropna().to_numpy()
        assert len(losses) == 4 and losses[-1] < losses[0]
        outputs = run.client(0).outputs(data.items[data.inputs[:2]])
        assert outputs.shape == (2, 4 + 1 + TAGS) and np.isfinite(outputs).all()


def test_a_file_has_the_items_of_each_example(tmp_path):
    data = dataset()
    pfljax.data.save_npz(str(tmp_path / "toy.npz"), data)
    found = pfljax.data.load_npz(str(tmp_path / "toy.npz"))
    assert (found.task, found.num_classes, found.vocabulary) == ("recommendation", TAGS, SIZES)
    np.testing.assert_array_equal(found.inputs, data.items[data.inputs])
    np.testing.assert_array_equal(found.targets, data.targets)
    assert found.targets.dtype == np.float32
