"""Examples of several arrays, such as a rating with two ids, from arrays to a trained run."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import data, models
from pfljax.core import tree
from pfljax.errors import UserError
from pfljax.models.ids import PADDING, Embedding, masked_mean
from pfljax.models.model import from_flax
from pfljax.training.run import loop
from pfljax.training.study import config as config_lib
from pfljax.training.study import experiment

CLIENTS, EACH, ITEMS, WORDS, LENGTH = 6, 20, 8, 12, 5


class TwoTowers(nn.Module):
    """A tower for each array of ids; features are the products of what the two give.

    Attributes:
      vocabulary: Number of ids by the names of the arrays.
      width: Width of the embeddings.
    """

    vocabulary: dict[str, int]
    width: int

    @nn.compact
    def __call__(self, inputs):
        product = 1.0
        for name, count in sorted(self.vocabulary.items()):
            rows = Embedding(count, self.width, name=name)(inputs[name])
            if rows.ndim == 3:
                rows = masked_mean(rows, inputs[name] != PADDING)
            product = product * nn.Dense(self.width, name=f"{name}_layer")(rows)
        return product


def two_towers(input_shape, num_classes, *, vocabulary, width=4):
    body = TwoTowers(dict(vocabulary), width)
    return from_flax(body, nn.Dense(num_classes), input_shape, reads_ids=True)


@pytest.fixture(autouse=True)
def table(monkeypatch):
    monkeypatch.setitem(models.MODELS, "two_towers", two_towers)


def ratings():
    """Users rate items by whether their numbers are both even or both odd."""
    draw = np.random.default_rng(0)
    users = np.repeat(np.arange(CLIENTS), EACH)
    items = draw.integers(0, ITEMS, CLIENTS * EACH)
    values = 3.0 + 2.0 * ((users + items) % 2) + 0.1 * draw.normal(size=len(users))
    return data.from_arrays(
        {"user": users, "item": items},
        values,
        users,
        name="ratings",
        task="regression",
        vocabulary={"user": CLIENTS, "item": ITEMS},
    )


def pairs_of_texts():
    """Two texts of different lengths: is each word of the second one of the first half?"""
    draw = np.random.default_rng(1)
    labels = draw.integers(0, 2, CLIENTS * EACH)
    question = draw.integers(1, WORDS, (len(labels), LENGTH))
    half = WORDS // 2
    answer = np.where(labels[:, None], draw.integers(1, half, (len(labels), 3)), half)
    return data.from_arrays(
        {"question": question, "answer": answer},
        labels,
        np.repeat(np.arange(CLIENTS), EACH),
        name="pairs",
        vocabulary={"question": WORDS, "answer": [WORDS]},
    )


def config_of(**changes):
    config = config_lib.default_config()
    with config.unlocked():
        config.model = {"name": "two_towers"}
    settings = {"algorithm": "fedavg", "rounds": 12, "eval_every": 6, "checkpoint_every": 0}
    settings |= {"engine.devices": 2, "client_optimizer.learning_rate": 0.5, "local_epochs": 3}
    config.update_from_flattened_dict(settings | changes)
    return config


@pytest.mark.parametrize("made, rate, rounds", [(ratings, 0.1, 48), (pairs_of_texts, 0.5, 12)])
def test_a_run_learns_from_a_file(tmp_path, made, rate, rounds):
    dataset = made()
    data.save_npz(str(tmp_path / "own.npz"), dataset)
    config = config_of(
        **{"data.name": "npz", "data.dir": str(tmp_path / "own.npz"), "rounds": rounds},
        **{"client_optimizer.learning_rate": rate},
    )
    built = experiment.build(config)
    for name, array in dataset.inputs.items():
        np.testing.assert_array_equal(built.dataset.inputs[name], array)
        assert built.examples.inputs[name].shape == array.shape
    assert built.dataset.vocabulary == dataset.vocabulary
    result = loop.run(built, tmp_path / "run")
    if made is ratings:
        # In units of the targets, whose variance is 1.
        assert result["personal_score"]["last"] < 0.2
    else:
        assert result["personal_accuracy"]["last"] > 0.9


def test_messages_of_a_model_of_dicts_pass_through_an_aggregator(tmp_path):
    config = config_of(rounds=2, eval_every=2, **{"aggregation.stages": ("top_k",)})
    result = loop.run(experiment.build(config, pairs_of_texts()), tmp_path / "run")
    plain = experiment.build(config_of(), pairs_of_texts())
    message = jax.eval_shape(plain.task.init, jax.random.key(0))
    assert result["upload_bytes"] < 0.2 * tree.num_bytes(message)


def test_the_store_and_the_host_hold_the_same_arrays(tmp_path):
    dataset = pairs_of_texts()
    with data.StoreWriter(
        str(tmp_path), name="pairs", num_classes=2, vocabulary=dataset.vocabulary
    ) as store:
        for client in range(CLIENTS):
            start = dataset.train.offsets[client]
            sizes = [getattr(dataset, split).sizes[client] for split in ("train", "validation")]
            end = start + sum(sizes) + dataset.test.sizes[client]
            rows = {name: array[start:end] for name, array in dataset.inputs.items()}
            store.add(rows, dataset.targets[start:end], train=sizes[0], validation=sizes[1])
        with pytest.raises(UserError, match="inputs of all clients the same names"):
            store.add(rows | {"other": rows["answer"]}, dataset.targets[start:end], train=sizes[0])
        narrow = rows | {"answer": rows["answer"][:, :2]}
        with pytest.raises(UserError, match="give all examples the same"):
            store.add(narrow, dataset.targets[start:end], train=sizes[0])
    found = data.load_store(str(tmp_path))
    assert found.vocabulary == {"question": (WORDS,), "answer": (WORDS,)}
    for name, array in dataset.inputs.items():
        assert isinstance(found.inputs[name], np.memmap)
        np.testing.assert_array_equal(found.inputs[name], array)
    results = [
        loop.run(experiment.build(config_of(rounds=2, **engine), one), tmp_path / str(number))
        for number, (one, engine) in enumerate(
            [(dataset, {}), (found, {"engine.residence": "host"})]
        )
    ]
    scores = [result["personal_accuracy"]["last"] for result in results]
    np.testing.assert_allclose(*scores, rtol=1e-6)


def test_measured_inputs_are_normalized_by_name(tmp_path):
    draw = np.random.default_rng(0)
    age, signal = draw.normal(40.0, 9.0, 30), draw.normal([[1.0, -2.0]], [[1.0, 3.0]], (30, 2))
    made = data.from_arrays(
        {"age": age, "signal": signal, "word": np.arange(30) % 4},
        np.arange(30) % 2,
        np.arange(30) % 3,
        vocabulary={"word": 4},
    )
    data.save_npz(str(tmp_path / "own.npz"), made)
    for dataset in (made, data.load_npz(str(tmp_path / "own.npz"))):
        assert set(dataset.mean) == set(dataset.std) == {"age", "signal"}
        np.testing.assert_allclose(dataset.mean["age"], age.mean())
        np.testing.assert_allclose(dataset.std["signal"], signal.std(axis=0))
        assert dataset.inputs["word"].dtype == np.int32
    text = data.describe(made)
    assert "age scalar (float32), signal 2 (float32), word scalar (int32) in 2 classes" in text


NUMBERS = {"a": np.ones((8, 2)), "b": np.arange(8)}
BASE = {"inputs": NUMBERS, "targets": np.arange(8) % 2, "clients": np.arange(8) % 2}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"inputs": {}}, "inputs of shape"),
        ({"inputs": NUMBERS | {"a": np.ones((7, 2))}}, "inputs of shape .7, 2. and inputs b"),
        ({"inputs": NUMBERS | {"a.b": np.ones(8)}}, "of the name 'a.b'"),
        ({"inputs": NUMBERS | {"c": np.full(8, np.nan)}}, "in its inputs 'c', has the value nan"),
        ({"inputs": NUMBERS | {"c": np.array(["x"] * 8)}}, "inputs 'c' of dtype <U1"),
        ({"vocabulary": {"b": 5}}, "in its inputs 'b', has the id 7"),
        ({"vocabulary": {"c": 5}}, "vocabulary of 'c', which its inputs lack"),
        ({"vocabulary": (9,)}, "does not say which of them are ids"),
    ],
)
def test_dicts_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        data.from_arrays(**(BASE | changes))


def test_statistics_without_a_name_are_refused():
    made = data.from_arrays(**BASE)
    for change, message in (
        ({"mean": {"a": 0.0}}, "a mean by name, but none of the measured inputs 'b'"),
        ({"std": {"a": 1.0, "b": 0.0}}, "a std not above 0"),
        ({"vocabulary": {"b": 8}}, "where a tuple of whole numbers is expected"),
        ({"inputs": made.inputs["a"]}, "has a mean by name, but its inputs are a single array"),
    ):
        with pytest.raises(UserError, match=message):
            experiment.build(config_of(), made._replace(**change))
    with pytest.raises(UserError, match="feature_shift=noise changes one array"):
        data.shift_features(made, "noise", num_groups=2, strength=0.5, seed=0)


def test_a_model_that_reads_other_inputs_is_refused(tmp_path):
    dataset = ratings()
    for name in ("mlp", "har_cnn"):
        config = config_of()
        with config.unlocked():
            config.model = {"name": name}
        with pytest.raises(UserError, match="set config.model.name to one of"):
            experiment.build(config, dataset)
    measured = dataset._replace(
        vocabulary={"item": (ITEMS,)}, mean={"user": 0.0}, std={"user": 1.0}
    )
    with pytest.raises(UserError, match="'user' of ratings are measurements, and the model two_to"):
        experiment.build(config_of(), measured)
    config = config_of()
    with config.unlocked():
        config.model.vocabulary = 5
    with pytest.raises(UserError, match="remove the key"):
        experiment.build(config, dataset)


def test_an_array_and_a_dict_in_one_file_are_refused(tmp_path):
    path = tmp_path / "own.npz"
    data.save_npz(str(path), data.from_arrays(**BASE))
    with np.load(path) as arrays:
        np.savez(path, **arrays, inputs=np.ones((8, 2)))
    with pytest.raises(UserError, match="has both inputs and inputs.a"):
        data.load_npz(str(path))


def test_the_shapes_of_inputs_reach_the_network():
    model = two_towers({"user": (), "item": ()}, 1, vocabulary={"user": 3, "item": 4})
    params = model.init(jax.random.key(0))
    ids = {"user": jnp.array([0, 2]), "item": jnp.array([3, 3])}
    assert model.features(params, ids).shape == (2, 4)
    assert model.num_features == 4
