"""The store on disk: written client by client, read row by row, refused where it is damaged."""

import jax
import numpy as np
import pytest

from pfljax import data
from pfljax.errors import UserError
from pfljax.training.run import loop
from pfljax.training.study import experiment
from pfljax.training.study.config import default_config


def write(path, dataset):
    """Writes a data set of the library as a store."""
    about = {key: getattr(dataset, key) for key in ("mean", "std", "task", "vocabulary")}
    about |= {key: getattr(dataset, key) for key in ("target_mean", "target_std")}
    with data.StoreWriter(
        str(path),
        name=dataset.name,
        num_classes=dataset.num_classes,
        num_unseen=dataset.num_unseen,
        **about,
    ) as store:
        for client in range(dataset.num_clients):
            sizes = [
                int(getattr(dataset, split).sizes[client]) for split in ("train", "validation")
            ]
            begin = dataset.train.offsets[client]
            end = dataset.test.offsets[client] + dataset.test.sizes[client]
            rows = slice(begin, end)
            train, validation = sizes
            store.add(
                dataset.inputs[rows], dataset.targets[rows], train=train, validation=validation
            )


DIGITS = dict(name="digits", num_clients=5, alpha=1.0, unseen_fraction=0.2)


def test_a_store_holds_what_was_written_and_stays_on_disk(tmp_path):
    original = data.load(**DIGITS)
    write(tmp_path, original)
    found = data.load(name="store", dir=str(tmp_path))
    assert isinstance(found.inputs, np.memmap) and isinstance(found.targets, np.memmap)
    for key, value in original._asdict().items():
        jax.tree.map(np.testing.assert_array_equal, getattr(found, key), value)
    assert found.inputs.dtype == np.uint8


def test_a_regression_and_statistics_of_each_column(tmp_path):
    with data.StoreWriter(
        str(tmp_path),
        name="made up",
        num_classes=0,
        task="regression",
        mean=[1.0, 2.0],
        std=[1.0, 3],
    ) as store:
        for _ in range(2):
            store.add(np.ones((3, 2), np.float32), np.arange(3.0), train=1, validation=1)
    found = data.load_store(str(tmp_path))
    assert (found.task, found.targets.dtype) == ("regression", np.float32)
    assert found.std.tolist() == [1, 3] and found.validation.offsets.tolist() == [1, 4]


def test_training_from_it_on_the_host_gives_the_same_numbers(tmp_path):
    write(tmp_path / "store", data.load(**DIGITS))
    results = []
    for name, residence in (("digits", "device"), ("store", "host")):
        config = default_config()
        config.rounds, config.eval_every, config.model.widths = 2, 2, (4,)
        config.algorithm = "fedper"
        config.data.update({**DIGITS, "name": name, "dir": str(tmp_path / "store")})
        config.engine.update({"residence": residence, "devices": 1})
        results.append(loop.run(experiment.build(config), tmp_path / name))
    for key in ("personal", "train"):
        for name, value in results[0].items():
            if name.startswith(key) and isinstance(value, float):
                np.testing.assert_allclose(results[1][name], value, rtol=1e-5)
    assert results[0]["dataset"] == results[1]["dataset"] == "digits"


@pytest.fixture
def store(tmp_path):
    write(tmp_path, data.load(**DIGITS))
    return tmp_path


@pytest.mark.parametrize("file", ["inputs.npy", "targets.npy", "clients.npz"])
def test_a_damaged_store_is_refused(store, file):
    whole = (store / file).read_bytes()
    for damage in (whole[: len(whole) // 2], whole[:20], b""):
        (store / file).write_bytes(damage)
        with pytest.raises(UserError, match=f"{file} is (a )?truncated.*StoreWriter"):
            data.load_store(str(store))
    (store / file).unlink()
    with pytest.raises(UserError, match=f"{file} cannot be read"):
        data.load_store(str(store))


def test_an_interrupted_writer_leaves_no_data_set(tmp_path):
    with pytest.raises(RuntimeError):
        with data.StoreWriter(str(tmp_path), name="half", num_classes=2) as store:
            store.add(np.zeros((4, 3)), np.zeros(4, int), train=2)
            raise RuntimeError
    with pytest.raises(UserError, match="clients.npz cannot be read"):
        data.load_store(str(tmp_path))


def test_clients_that_do_not_fit_are_refused(tmp_path):
    with data.StoreWriter(str(tmp_path), name="made up", num_classes=2) as store:
        store.add(np.zeros((4, 3)), np.zeros(4, int), train=2)
        with pytest.raises(UserError, match="shape .4,. and dtype"):
            store.add(np.zeros((4, 4)), np.zeros(4, int), train=2)
        for count, train in ((3, 2), (4, 0), (4, 5)):
            with pytest.raises(UserError, match="Client 1 has"):
                store.add(np.zeros((4, 3)), np.zeros(count, int), train=train)


def test_an_unknown_argument_is_named(tmp_path):
    with pytest.raises(UserError, match="did you mean 'std'"):
        data.StoreWriter(str(tmp_path), name="made up", num_classes=2, sdt=3.0)


def test_no_writable_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        data.StoreWriter(str(tmp_path / "file" / "inside"), name="made up", num_classes=2)
