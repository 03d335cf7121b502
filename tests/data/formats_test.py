"""Formats: PFLlib's directories and pfljax's own file, read, written and refused."""

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest

from pfljax.data import assemble, formats, load_npz, save_npz, sources
from pfljax.data.formats import layout, pfllib
from pfljax.errors import UserError

FRACTIONS = dict(validation_fraction=0.0, unseen_fraction=0.0, seed=0)


def client(count, first=0, shape=(1, 4, 6), num_classes=3):
    """A client as PFLlib stores it; the first value of an example is its number."""
    x = np.random.default_rng(first).normal(size=(count, *shape)).astype(np.float32)
    x.reshape(count, -1)[:, 0] = np.arange(first, first + count)
    return {"x": x, "y": (np.arange(count) % num_classes).astype(np.int64)}


def write_client(file, data):
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        np.savez_compressed(stream, data=data)


def write_pfllib(root, num_clients=3, config=True, **options):
    for index in range(num_clients):
        write_client(root / "train" / f"{index}.npz", client(8 + index, 100 * index, **options))
        write_client(root / "test" / f"{index}.npz", client(4, 100 * index + 50, **options))
    if config:
        settings = {"num_clients": num_clients, "num_classes": 3, "partition": "dir", "alpha": 0.1}
        (root / "config.json").write_text(json.dumps(settings))


def read_pfllib(root, **changes):
    return formats.load_pfllib(str(root), **FRACTIONS | changes)


def write_raw(file, payload):
    """Writes an .npz whose `data` is the given pickle, whatever that does."""
    header = io.BytesIO()
    layout = {"descr": "|O", "fortran_order": False, "shape": ()}
    np.lib.format.write_array_header_1_0(header, layout)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.npy", header.getvalue() + payload)


@pytest.mark.parametrize("config", [True, False])
def test_pfllib_directory(tmp_path, config):
    write_pfllib(tmp_path / "Toy", config=config)
    data = read_pfllib(tmp_path / "Toy")
    assert (data.name, data.num_clients, data.num_classes) == ("Toy", 3, 3)
    assert (data.mean, data.std, data.num_unseen) == (0.0, 1.0, 0)
    assert data.inputs.shape == (39, 4, 6, 1) and data.inputs.dtype == np.float32
    assert data.targets.dtype == np.int32
    assert data.train.sizes.tolist() == [8, 9, 10] and data.test.sizes.tolist() == [4, 4, 4]
    assert not data.validation.sizes.any()
    for index in range(3):
        for split, first in ((data.train, 100 * index), (data.test, 100 * index + 50)):
            start, size = split.offsets[index], split.sizes[index]
            numbers = data.inputs[start : start + size, 0, 0, 0].astype(int) - first
            assert sorted(numbers) == list(range(size))
            np.testing.assert_array_equal(data.targets[start : start + size], numbers % 3)


def test_pfllib_images_become_channels_last(tmp_path):
    write_pfllib(tmp_path, num_clients=1, shape=(3, 5, 7))
    data = read_pfllib(tmp_path)
    assert data.inputs.shape[1:] == (5, 7, 3)
    original = client(8, 0, shape=(3, 5, 7))["x"]
    for example in data.inputs[: data.train.sizes[0]]:
        expected = original[int(example[0, 0, 0])].transpose(1, 2, 0)
        np.testing.assert_array_equal(example, expected)


def test_pfllib_tables_keep_their_axes(tmp_path):
    write_pfllib(tmp_path, shape=(11,))
    assert read_pfllib(tmp_path).inputs.shape == (39, 11)


def test_pfllib_validation_comes_from_training(tmp_path):
    write_pfllib(tmp_path)
    data = read_pfllib(tmp_path, validation_fraction=0.25, unseen_fraction=0.4)
    by_client = sorted(zip(data.train.sizes, data.validation.sizes, data.test.sizes, strict=True))
    assert by_client == [(6, 2, 4), (7, 2, 4), (8, 2, 4)]
    assert data.num_unseen == 1
    for index in range(3):
        start = data.validation.offsets[index]
        numbers = data.inputs[start : start + data.validation.sizes[index], 0, 0, 0] % 100
        assert np.all(numbers < 50)


def test_pfllib_validation_has_the_clients_mixture_of_labels(tmp_path):
    write_pfllib(tmp_path)
    for index in range(3):
        data = client(60) | {"y": np.repeat([0, 1, 2], [40, 15, 5])}
        write_client(tmp_path / "train" / f"{index}.npz", data)
    data = read_pfllib(tmp_path, validation_fraction=0.2)
    for offset, size in zip(*data.validation, strict=True):
        assert np.bincount(data.targets[offset : offset + size]).tolist() == [8, 3, 1]


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_pickles_of_older_and_newer_numpy_are_read(tmp_path, module):
    array = np.empty((), object)
    array[()] = client(3) | {"count": np.float32(3)}
    payload = pickle.dumps(array, protocol=3)  # the protocol of NumPy 1, names in plain lines
    payload = payload.replace(b"numpy._core.", b"numpy.core.")
    payload = payload.replace(b"numpy.core.multiarray", module)
    assert payload.count(module) >= 2
    write_raw(tmp_path / "0.npz", payload)
    read = pfllib._read_pickled_dict(tmp_path / "0.npz")
    np.testing.assert_array_equal(read["x"], client(3)["x"])
    assert read["count"] == 3


class Calls:
    """Pickles into a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("where", ["array", "x", "beside"])
@pytest.mark.parametrize("function", [os.system, eval, exec, getattr, np.load, np.fromfile])
def test_a_pickle_that_would_run_something_is_refused(tmp_path, where, function):
    write_pfllib(tmp_path)
    proof = tmp_path / "it-ran"
    argument = f"open({str(proof)!r}, 'w').close()"
    if function is os.system:
        argument = f"touch {proof}"
    attack = Calls(function, argument)
    array = np.empty((), object)
    array[()] = client(3) | ({"x": attack} if where == "x" else {"z": attack})
    payload = pickle.dumps(attack if where == "array" else array, protocol=4)
    file = tmp_path / "train" / "1.npz"
    write_raw(file, payload)
    with pytest.raises(UserError, match="could execute code") as refusal:
        read_pfllib(tmp_path)
    assert str(file) in str(refusal.value)
    assert not proof.exists()
    if function is os.system and where == "beside":
        # The attack is real: NumPy's own reader would have run it.
        np.load(file, allow_pickle=True)["data"]
        assert proof.exists()


def truncate(root):
    file = root / "test" / "2.npz"
    file.write_bytes(file.read_bytes()[:-30])
    return file, "truncated or damaged"


def flip_bytes(root):
    file = root / "test" / "2.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    return file, "damaged"


def flip_a_pixel(root):
    """The pickle stays readable; only the archive's checksum tells."""
    file = root / "test" / "2.npz"
    data = client(5000, 250)
    with file.open("wb") as stream:
        np.savez(stream, data=data)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return file, "truncated or damaged"


def no_zip(root):
    file = root / "train" / "0.npz"
    file.write_bytes(b"nothing of the kind")
    return file, "truncated or damaged"


def no_pickle(root):
    file = root / "train" / "0.npz"
    write_raw(file, b"\x80\x04\x95")
    return file, "damaged"


def other_key(root):
    file = root / "train" / "0.npz"
    np.savez(file, x=np.zeros(3))
    return file, "dictionary of x and y as data"


def plain_array(root):
    file = root / "train" / "0.npz"
    np.savez(file, data=np.zeros(3))
    return file, "dictionary of x and y as data"


def folder_in_place_of_file(root):
    file = root / "train" / "0.npz"
    file.unlink()
    file.mkdir()
    return file, "cannot be read"


def missing_client(root):
    file = root / "train" / "1.npz"
    file.unlink()
    return file, "is missing"


def stale_client(root):
    write_client(root / "train" / "3.npz", client(3))
    return root, "files of 4 clients instead of 3"


def missing_test_folder(root):
    for file in (root / "test").iterdir():
        file.unlink()
    (root / "test").rmdir()
    return root, "no directory test"


def bad_json(root):
    (root / "config.json").write_text("{'num_clients': 3}")
    return root / "config.json", "not valid JSON"


def json_list(root):
    (root / "config.json").write_text("[3]")
    return root / "config.json", "not a JSON object"


def bad_count(root):
    (root / "config.json").write_text('{"num_classes": "ten"}')
    return root / "config.json", "num_classes"


def too_few_classes(root):
    (root / "config.json").write_text('{"num_classes": 2}')
    return root, "config.json has 2 classes"


def changed(**replaced):
    def fault(root):
        file = root / "test" / "1.npz"
        write_client(file, client(4, 150) | replaced)
        return file, ""

    fault.__name__ = "_".join(f"{key}_{np.shape(value)}" for key, value in replaced.items())
    return fault


def text(root):
    file = root / "train" / "0.npz"
    rows = np.empty((2, 2), object)
    rows[:] = [[[1, 2], 2], [[3], 1]]
    write_client(file, {"x": rows, "y": np.arange(2)})
    return file, "texts must be ids"


def no_training_example(root):
    file = root / "train" / "1.npz"
    write_client(file, {"x": np.zeros((0, 1, 4, 6), np.float32), "y": np.zeros(0, np.int64)})
    return file, "no example"


def labels_with_gaps(root):
    write_client(root / "train" / "1.npz", client(9, 100) | {"y": np.full(9, 10**6)})
    (root / "config.json").unlink()
    return root, "label 1000000 in only 39 examples"


PFLLIB_FAULTS = [
    labels_with_gaps,
    truncate,
    flip_bytes,
    flip_a_pixel,
    no_zip,
    no_pickle,
    other_key,
    plain_array,
    folder_in_place_of_file,
    missing_client,
    stale_client,
    missing_test_folder,
    bad_json,
    json_list,
    bad_count,
    too_few_classes,
    text,
    changed(x=None),
    changed(y=None),
    changed(y=np.zeros(3, np.int64)),
    changed(y=np.zeros((4, 1), np.int64)),
    changed(y=np.zeros(4, np.float32)),
    changed(y=np.array([0, 1, 2, -1])),
    changed(x=np.zeros((4, 1, 4, 7), np.float32)),
    changed(x=np.full((4, 1, 4, 6), np.nan, np.float32)),
    no_training_example,
]


@pytest.mark.parametrize("fault", PFLLIB_FAULTS, ids=lambda fault: fault.__name__)
def test_a_wrong_pfllib_file_is_named(tmp_path, fault):
    write_pfllib(tmp_path)
    path, message = fault(tmp_path)
    with pytest.raises(UserError) as refusal:
        read_pfllib(tmp_path)
    assert str(path) in str(refusal.value)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_directory_without_files_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match="0 clients instead of at least one"):
        read_pfllib(tmp_path)


# pfljax's own file


@pytest.fixture
def dataset():
    digits = sources.load_digits()
    return assemble(
        digits,
        np.split(np.arange(60), 6),
        test_fraction=0.3,
        validation_fraction=0.2,
        unseen_fraction=0.2,
        seed=0,
    )


def assert_same(left, right):
    for name, value, other in zip(left._fields, left, right, strict=True):
        for one, two in zip(np.atleast_1d(value), np.atleast_1d(other), strict=True):
            np.testing.assert_array_equal(one, two, err_msg=name)
    for name in ("inputs", "targets"):
        assert getattr(left, name).dtype == getattr(right, name).dtype
    for name in ("name", "num_classes", "mean", "std", "num_unseen"):
        assert type(getattr(left, name)) is type(getattr(right, name))


@pytest.mark.parametrize("file", ["data.npz", "data"])
def test_round_trip(tmp_path, dataset, file):
    save_npz(str(tmp_path / file), dataset)
    assert os.listdir(tmp_path) == [file]
    assert_same(load_npz(str(tmp_path / file)), dataset)


def test_round_trip_of_a_pfllib_directory(tmp_path):
    write_pfllib(tmp_path / "Toy")
    data = read_pfllib(tmp_path / "Toy", unseen_fraction=0.3)
    save_npz(str(tmp_path / "toy.npz"), data)
    assert_same(load_npz(str(tmp_path / "toy.npz")), data)


def test_the_documented_keys_are_those_in_the_file(tmp_path, dataset):
    save_npz(str(tmp_path / "data.npz"), dataset)
    with np.load(tmp_path / "data.npz") as stored:
        assert all(key in layout.__doc__ for key in stored)
        assert len(stored.files) == 17


def replaced(key, change, message):
    def fault(arrays):
        arrays[key] = change(arrays[key])
        return message

    fault.__name__ = f"{key}: {message}"
    return fault


def with_value(index, value):
    def change(array):
        array = array.copy()
        array[index] = value
        return array

    return change


def removed(key):
    def fault(arrays):
        del arrays[key]
        return f"lacks {key}"

    fault.__name__ = f"no {key}"
    return fault


NPZ_FAULTS = [
    removed("std"),
    removed("validation_sizes"),
    replaced("targets", lambda a: a.astype(str), "from_arrays numbers labels of any kind"),
    replaced("targets", lambda a: a + 0.5, "whole number from 0 to 9"),
    replaced("targets", lambda a: a.astype(complex), "targets of dtype complex128"),
    replaced("targets", lambda a: a[:, None], "targets with 2 axes"),
    replaced("targets", lambda a: a[:-1], "60 inputs but 59 targets"),
    replaced("targets", with_value(3, 10), "label 10 but 10 classes"),
    replaced("targets", with_value(3, -1), "label -1"),
    replaced("inputs", lambda a: a.astype("S1"), "inputs of dtype |S1"),
    replaced("inputs", lambda a: a.astype(object), "not a plain array"),
    replaced("inputs", lambda a: np.where(a > 0, np.nan, 0.0), "the value nan in column"),
    replaced("train_sizes", lambda a: a.astype(np.float64), "train_sizes of dtype float64"),
    replaced("train_sizes", with_value(2, 0), "no train example for client 2"),
    replaced("test_sizes", lambda a: 0 * a, "no test example for any client"),
    replaced("test_sizes", with_value(5, 9), "client 5 outside"),
    replaced("train_offsets", with_value(0, -1), "client 0 outside"),
    replaced("train_offsets", with_value(1, 2**31 - 1), "client 1 outside"),
    replaced("validation_sizes", with_value(1, -1), "client 1 outside"),
    replaced("validation_offsets", with_value(3, 0), "client 3 consecutively"),
    replaced("test_sizes", with_value(1, 4), "same rows to two clients"),
    replaced("test_sizes", lambda a: a[:-1], "different lengths"),
    replaced("num_unseen", lambda a: np.int32(6), "num_unseen 6 of 6"),
    replaced("num_classes", lambda a: np.float32(10), "num_classes of dtype float32"),
    replaced("std", lambda a: np.float64(0), "std"),
    replaced("mean", lambda a: np.float64("nan"), "mean"),
    replaced("name", lambda a: np.int32(3), "name of dtype int32"),
]


@pytest.mark.parametrize("fault", NPZ_FAULTS, ids=lambda fault: fault.__name__)
def test_a_wrong_npz_file_is_named(tmp_path, dataset, fault):
    file = tmp_path / "data.npz"
    save_npz(str(file), dataset)
    with np.load(file) as stored:
        arrays = dict(stored)
    message = fault(arrays)
    np.savez(file, **arrays)
    with pytest.raises(UserError) as refusal:
        load_npz(str(file))
    assert str(file) in str(refusal.value)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("keep", [0, 10, 400, -30])
def test_a_truncated_npz_file_is_refused(tmp_path, dataset, keep):
    file = tmp_path / "data.npz"
    save_npz(str(file), dataset)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match="truncated or damaged") as refusal:
        load_npz(str(file))
    assert str(file) in str(refusal.value)


def test_every_damaged_byte_is_refused_or_harmless(tmp_path, dataset):
    file = tmp_path / "data.npz"
    save_npz(str(file), dataset)
    content = file.read_bytes()
    for place in range(0, len(content), 41):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        file.write_bytes(damaged)
        try:
            loaded = load_npz(str(file))
        except UserError:
            continue
        assert_same(loaded, dataset)


def test_absent_files_are_named(tmp_path, dataset):
    with pytest.raises(UserError, match="none.npz cannot be read"):
        load_npz(str(tmp_path / "none.npz"))
    with pytest.raises(UserError, match="existing directory"):
        save_npz(str(tmp_path / "none" / "data.npz"), dataset)
    with pytest.raises(UserError, match="data.dir"):
        load_npz("")
    with pytest.raises(UserError, match="data.dir"):
        read_pfllib("")
