"""The check of examples on the host: what is converted, what is refused, and what it costs."""

import time

import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import data
from pfljax.data import Split, validate, validate_arrays
from pfljax.errors import UserError
from pfljax.training.study import experiment, task
from pfljax.training.study.config import default_config

TWO = {
    "train": Split(np.int32([0, 20]), np.int32([12, 12])),
    "validation": Split(np.int32([12, 32]), np.int32([2, 2])),
    "test": Split(np.int32([14, 34]), np.int32([6, 6])),
}


def made(inputs, targets=None, **about):
    targets = np.arange(40) % 3 if targets is None else targets
    about = {"num_classes": 3, **TWO} | about
    return data.FederatedDataset("made", inputs, targets, **about)


def draw(scale=1.0):
    return scale * np.random.default_rng(0).normal(size=(40, 5))


@pytest.mark.parametrize(
    "dtype, scale, expected",
    [
        ("int64", 1e9, "float32"),
        ("uint64", 1e12, "float32"),
        ("uint32", 1.2e9, "float32"),
        ("int64", 100, "int32"),
        ("uint32", 100, "int32"),
        ("uint64", 100, "int32"),
        ("float64", 1, "float32"),
        ("int16", 100, "int16"),
        ("uint8", 50, "uint8"),
        ("float16", 1, "float16"),
        ("float32", 1, "float32"),
        (">f4", 1, "float32"),
        (">i2", 100, "int16"),
    ],
)
def test_inputs_reach_a_device_as_their_values_are(dtype, scale, expected):
    values = np.abs(draw(scale)) if dtype.startswith("u") else draw(scale)
    inputs = values.astype(dtype)
    checked = validate.federated(made(inputs)).inputs
    assert checked.dtype == expected
    on_device = np.asarray(jnp.asarray(checked), np.float64)
    np.testing.assert_array_equal(on_device, inputs.astype(np.float32))


def test_large_integers_train_as_the_same_floats(tmp_path):
    """int64 used to wrap round at 2^31 on its way to the device."""
    integers = np.rint(draw(2e9)).astype(np.int64)
    assert np.abs(integers).max() > 2**31
    files = []
    for name, inputs in (("integers", integers), ("floats", integers.astype(np.float64))):
        files.append(np.savez(tmp_path / f"{name}.npz", **npz_arrays(inputs)))
    one, two = (
        data.load(name="npz", dir=str(tmp_path / f"{name}.npz")) for name in ("integers", "floats")
    )
    assert one.inputs.dtype == two.inputs.dtype == np.float32
    np.testing.assert_array_equal(one.inputs, two.inputs)


def npz_arrays(inputs):
    arrays = {"name": "made", "inputs": inputs, "targets": np.arange(40) % 3, "num_classes": 3}
    arrays |= {"num_unseen": 0, "mean": 0.0, "std": 1.0}
    for name, split in TWO.items():
        arrays |= {f"{name}_offsets": split.offsets, f"{name}_sizes": split.sizes}
    return arrays


@pytest.mark.parametrize(
    "inputs",
    [
        1.7e9 + draw(),  # seconds since 1970
        (10**18 + 1000 * draw()).astype(np.int64),
        (2**30 + 3 * draw()).astype(np.int32),
        2**60 + np.arange(200).reshape(40, 5) % 9,
        1e-300 * draw(),
    ],
    ids=lambda inputs: inputs.dtype.name,
)
def test_values_equal_in_float32_are_refused(inputs):
    with pytest.raises(
        UserError, match="The data set made has values in column 0 like .* too close"
    ):
        validate.federated(made(inputs))
    centred = inputs.astype(np.float64) - inputs[0].astype(np.float64)
    if centred.std() > 1e-30:
        validate.federated(made(centred))


def test_a_signaling_nan_is_one(tmp_path):
    """Casting it warns, and warnings are errors here."""
    inputs = np.zeros((40, 5), np.float32)
    inputs.view(np.uint32)[3, 2] = 0x7FA00000
    with pytest.raises(UserError, match="the value nan in column 2 of row 3"):
        validate.federated(made(inputs))


@pytest.mark.parametrize("rare", [np.float64, np.int64])
def test_a_value_that_is_rare_is_no_fault_of_rounding(rare):
    inputs = np.zeros((40, 5), rare)
    inputs[3, 2] = 123_456_789
    validate.federated(made(inputs))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"inputs": np.where(draw() > 2, np.nan, draw())}, "the value nan in column"),
        ({"inputs": np.full((40, 5), -np.inf)}, "the value -inf in column 0 of row 0 .client 0."),
        ({"inputs": np.full((40, 5), 1e39)}, "float32 cannot represent"),
        ({"inputs": draw().astype(complex)}, "inputs of dtype complex128"),
        ({"inputs": draw().astype(object)}, "inputs of dtype object"),
        ({"inputs": np.full((40, 5), 2**63, np.uint64)}, "beyond 2..62"),
        ({"inputs": draw()[:, :0]}, "which contain no number"),
        ({"inputs": draw()[:30]}, "30 inputs but 40 targets"),
        ({"targets": np.arange(40) % 3 - 1}, "the label -1 but 3 classes"),
        ({"targets": np.arange(40) % 4}, "the label 3 but 3 classes"),
        ({"targets": np.arange(40) / 2}, "the label 0.5 in row 1 .client 0."),
        ({"targets": np.array(["a", "b"] * 20)}, "targets of dtype <U1"),
        ({"targets": np.zeros((40, 5), int)}, "targets (of shape .40, 5.|with 2 axes)"),
        ({"num_classes": 2_000_000_000}, "2000000000 classes; from 1 to"),
        ({"num_classes": 0}, "0 classes; from 1 to"),
        ({"task": "sorting"}, "not one of classification, regression"),
        (
            {"task": "regression", "targets": np.full(40, np.nan)},
            "in its targets, has",
        ),
        ({"task": "ranking"}, "targets that are all 0"),
        ({"std": 0.0}, "std not above 0"),
        ({"mean": np.zeros(4)}, "which does not match its examples"),
        ({"num_unseen": 2}, "num_unseen 2 of 2"),
        ({"test": TWO["test"]._replace(sizes=np.int32([6, 7]))}, "client 1 outside its 40 rows"),
        ({"train": TWO["train"]._replace(sizes=np.int32([12, 0]))}, "no train example for client"),
    ],
)
def test_a_user_data_set_is_validated_before_a_run(changes, message):
    dataset = made(**({"inputs": draw()} | changes))
    for check in (lambda: experiment.build(default_config(), dataset), lambda: save(dataset)):
        with pytest.raises(UserError, match=message) as refused:
            check()
        assert "\n" not in str(refused.value)


def save(dataset):
    data.save_npz("/no directory of this name/made.npz", dataset)


def test_clients_and_classes_that_cannot_be_counted():
    many = 3000
    splits = {
        name: Split(np.zeros(many, np.int32), np.full(many, size, np.int32))
        for name, size in (("train", 12), ("validation", 0), ("test", 6))
    }
    dataset = made(draw(), **splits, num_classes=10**6)
    with pytest.raises(UserError, match="3000 clients and 1000000 classes, whose counts"):
        validate.federated(dataset)
    validate.federated(dataset._replace(num_classes=1000))


@pytest.mark.parametrize("vocabulary, more", [(6, 0), (5, 1)])
def test_ids_beyond_a_vocabulary_that_the_config_names(vocabulary, more):
    config = default_config()
    with config.unlocked():
        config.model = {"name": "fasttext", "vocabulary": vocabulary}
    ids = np.arange(200, dtype=np.int32).reshape(40, 5) % 6
    if more:
        with pytest.raises(UserError, match="the id 5 of row 1 but a vocabulary of 5: raise conf"):
            task.build_task(config, made(ids))
        with pytest.raises(UserError, match="dtype float32.* a model for numeric inputs"):
            task.build_task(config, made(ids.astype(np.float32)))
    else:
        make, frozen = task.build_task(config, made(ids))
        assert make(frozen).num_classes == 3


def test_a_large_file_is_looked_at_and_not_read(tmp_path, monkeypatch):
    with data.StoreWriter(str(tmp_path), name="made", num_classes=3) as store:
        for _ in range(50):
            store.add(draw().astype(np.float32), np.arange(40) % 3, train=30)
    monkeypatch.setattr(validate_arrays, "_LOOKED_AT", 4000)
    monkeypatch.setattr(validate_arrays, "_BLOCK", 400)
    inputs = data.load_store(str(tmp_path)).inputs
    seen = list(validate_arrays._blocks(inputs))
    assert sum(block.nbytes for _, block in seen) <= 4000 < inputs.nbytes / 9
    assert seen[0][0] == 0 and seen[-1][0] + len(seen[-1][1]) == len(inputs)
    assert len(list(validate_arrays._blocks(np.array(inputs)))) == 100


def test_a_store_is_checked_as_it_is_written(tmp_path):
    with data.StoreWriter(str(tmp_path), name="made", num_classes=3) as store:
        good = draw().astype(np.float32)
        store.add(good, np.arange(40) % 3, train=30)
        for inputs, labels, message in (
            (np.where(good > 2, np.nan, good), np.arange(40) % 3, "Client 1 .* the value nan"),
            (np.rint(draw(1e10)).astype(np.int64), np.arange(40) % 3, "write them as float32"),
            (good, np.arange(40) % 4, "Client 1 of .* has the label 3"),
        ):
            with pytest.raises(UserError, match=message):
                store.add(inputs, labels, train=30)
        store.add(good, np.arange(40) % 3, train=40)  # and none to be tested on
    found = data.load_store(str(tmp_path))
    assert found.test.sizes.tolist() == [10, 0] and len(found.inputs) == 80


def test_bytes_cost_nothing_and_floats_little():
    images = np.zeros((70_000, 28, 28, 1), np.uint8)
    labels = np.zeros(70_000, np.int32)
    begin = time.perf_counter()
    validate.examples(data.Examples("images", images, labels, 10), "images")
    assert time.perf_counter() - begin < 0.5
