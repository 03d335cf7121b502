"""Image data sets on small files in the forms in which they are distributed."""

import io
import json
import lzma
import pickle
import struct
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from pfljax import data
from pfljax.data import sources
from pfljax.errors import UserError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)


def python2_pickle(values):
    """Pickles strings, lists of small numbers and uint8 matrices as Python 2 did."""

    def number(value):
        return b"J" + struct.pack("<i", value)

    def string(content):
        return b"T" + struct.pack("<i", len(content)) + content

    def encode(value):
        if isinstance(value, bytes):
            return string(value)
        if isinstance(value, list):
            return b"](" + b"".join(map(number, value)) + b"e"
        empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        nothing = b"NNN" + number(-1) * 2 + b"K\x00tb"
        dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|" + nothing
        shape = b"".join(map(number, value.shape)) + b"\x86"
        return empty + b"(K\x01" + shape + dtype + b"\x89" + string(value.tobytes()) + b"tb"

    entries = [string(key.encode()) + encode(value) + b"s" for key, value in values.items()]
    return b"\x80\x02}" + b"".join(entries) + b"."


def planes(images):
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def npy_xz(path, array):
    content = io.BytesIO()
    np.save(content, array)
    path.write_bytes(lzma.compress(content.getvalue()))


def write_cifar(folder, form, num_classes=10):
    """Writes 12 images; the label of image i is i mod 10, its superclass i mod 3."""
    folder.mkdir(parents=True, exist_ok=True)
    fine, coarse = np.arange(12) % 10, np.arange(12) % 3
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    pieces = np.split(np.arange(12), 6)
    if num_classes == 100:
        names, pieces = ["train", "test"], [np.arange(10), np.arange(10, 12)]
    if form == "arrays":
        for part, rows in (("train", np.arange(10)), ("test", np.arange(10, 12))):
            npy_xz(folder / f"{part}_images.npy.xz", PIXELS[rows])
            if num_classes == 10:
                np.save(folder / f"{part}_labels.npy", fine[rows])
            else:
                np.save(folder / f"{part}_fine_labels.npy", fine[rows])
                np.save(folder / f"{part}_coarse_labels.npy", coarse[rows])
        return
    for name, rows in zip(names, pieces, strict=True):
        if form == "python":
            batch = {"batch_label": b"a batch", "data": planes(PIXELS[rows])}
            if num_classes == 10:
                batch["labels"] = fine[rows].tolist()
            else:
                batch["fine_labels"] = fine[rows].tolist()
                batch["coarse_labels"] = coarse[rows].tolist()
            (folder / name).write_bytes(python2_pickle(batch))
        else:
            labels = [fine[rows]] if num_classes == 10 else [coarse[rows], fine[rows]]
            records = np.concatenate([*(each[:, None] for each in labels), planes(PIXELS[rows])], 1)
            (folder / f"{name}.bin").write_bytes(records.astype(np.uint8).tobytes())


@pytest.mark.parametrize("form", ["python", "binary", "arrays"])
@pytest.mark.parametrize("folder", ["", "cifar10"])
def test_cifar10(tmp_path, form, folder):
    write_cifar(tmp_path / folder, form)
    pool = sources.SOURCES["cifar10"](str(tmp_path))
    np.testing.assert_array_equal(pool.inputs, PIXELS)
    assert pool.targets.tolist() == [i % 10 for i in range(12)]
    assert (pool.targets.dtype, pool.num_classes, pool.owners) == (np.int32, 10, None)


@pytest.mark.parametrize("form", ["python", "binary", "arrays"])
def test_cifar100(tmp_path, form):
    write_cifar(tmp_path, form, 100)
    pool = sources.SOURCES["cifar100"](str(tmp_path))
    np.testing.assert_array_equal(pool.inputs, PIXELS)
    assert pool.targets.tolist() == [i % 10 for i in range(12)]
    assert pool.owners.tolist() == [i % 3 for i in range(12)] and pool.num_classes == 100
    coarse = sources.SOURCES["cifar100"](str(tmp_path), labels="coarse")
    assert coarse.targets.tolist() == [i % 3 for i in range(12)] and coarse.num_classes == 20


@pytest.mark.parametrize("name, classes", [("cifar10", 10), ("cifar100", 100)])
def test_cifar_through_tfds(tmp_path, name, classes):
    with tfds.testing.mock_data(num_examples=4):
        pool = sources.SOURCES[name](str(tmp_path))
    assert pool.inputs.shape == (8, 32, 32, 3) and pool.num_classes == classes
    assert pool.targets.dtype == np.int32
    assert (pool.owners is None) == (name == "cifar10")


def unsafe(folder):
    (folder / "data_batch_2").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    return folder / "data_batch_2", "could execute code"


def truncated(folder):
    path = folder / "data_batch_3"
    path.write_bytes(path.read_bytes()[:500])
    return path, "damaged or not a CIFAR batch"


def another_pickle(folder):
    (folder / "test_batch").write_bytes(pickle.dumps([1, 2], protocol=2))
    return folder / "test_batch", "not a CIFAR batch"


def wrong_label(folder):
    batch = {"data": planes(PIXELS[:2]), "labels": [3, 12]}
    (folder / "data_batch_1").write_bytes(python2_pickle(batch))
    return folder / "data_batch_1", "label 12"


def fewer_labels(folder):
    batch = {"data": planes(PIXELS[:2]), "labels": [3]}
    (folder / "data_batch_1").write_bytes(python2_pickle(batch))
    return folder / "data_batch_1", "not a CIFAR batch"


def missing(folder):
    (folder / "data_batch_4").unlink()
    return folder, "lacks data_batch_4"


def nothing(folder):
    for path in folder.iterdir():
        path.unlink()
    return folder, "tfds build cifar10"


FAULTS = [unsafe, truncated, another_pickle, wrong_label, fewer_labels, missing, nothing]


@pytest.mark.parametrize("protocol", range(6))
def test_batches_that_python_3_pickled(tmp_path, protocol):
    write_cifar(tmp_path, "python")
    expected = sources.SOURCES["cifar10"](str(tmp_path))
    for file in tmp_path.glob("*_batch*"):
        batch = pickle.loads(file.read_bytes(), encoding="bytes")
        labels = batch.pop(b"labels", None) or batch.pop("labels")
        batch[b"labels"] = [np.int64(label) for label in labels]
        file.write_bytes(pickle.dumps(batch, protocol))
    loaded = sources.SOURCES["cifar10"](str(tmp_path))
    np.testing.assert_array_equal(loaded.inputs, expected.inputs)
    assert loaded.targets.tolist() == expected.targets.tolist()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_wrong_cifar_file_is_named(tmp_path, fault):
    write_cifar(tmp_path, "python")
    path, message = fault(tmp_path)
    with pytest.raises(UserError) as refusal:
        sources.SOURCES["cifar10"](str(tmp_path))
    assert str(path) in str(refusal.value) and message in str(refusal.value)


def test_wrong_arrays_and_records_are_named(tmp_path):
    write_cifar(tmp_path, "binary")
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="not a multiple of the record size"):
        sources.SOURCES["cifar10"](str(tmp_path))
    for path in tmp_path.iterdir():
        path.unlink()
    write_cifar(tmp_path / "cifar10", "arrays")
    packed = tmp_path / "cifar10" / "test_images.npy.xz"
    content = packed.read_bytes()
    packed.write_bytes(content[:-30])
    with pytest.raises(UserError, match="test_images.npy.xz is a truncated or damaged xz"):
        sources.SOURCES["cifar10"](str(tmp_path))
    packed.write_bytes(lzma.compress(b"no array"))
    with pytest.raises(UserError, match="not an .npy file of numbers"):
        sources.SOURCES["cifar10"](str(tmp_path))
    npy_xz(packed, PIXELS[:2, :16])
    with pytest.raises(UserError, match="of shape nx32x32x3"):
        sources.SOURCES["cifar10"](str(tmp_path))
    npy_xz(packed, PIXELS[:1])
    with pytest.raises(UserError, match="has 1 images but .* 2 labels"):
        sources.SOURCES["cifar10"](str(tmp_path))


def test_long_tail():
    pool = data.Examples("toy", np.arange(60)[:, None], np.arange(60, dtype=np.int32) % 3, 3)
    tail = sources.long_tail(pool._replace(owners=np.arange(60) // 20), 4.0)
    assert np.bincount(tail.targets).tolist() == [20, 10, 5]
    assert (np.diff(tail.inputs[:, 0]) > 0).all()
    np.testing.assert_array_equal(tail.owners, tail.inputs[:, 0] // 20)
    assert len(sources.long_tail(pool, 1.0).targets) == 60
    for imbalance in (0.5, 21.0):
        with pytest.raises(UserError, match="from 1 to 20"):
            sources.long_tail(pool, imbalance)


def test_long_tail_with_balanced_test_examples():
    pool = data.Examples("toy", np.arange(61)[:, None], np.arange(61, dtype=np.int32) % 3, 3)
    tail = sources.long_tail(pool, 4.0, largest=16)
    assert np.bincount(tail.targets).tolist() == [16, 8, 4]
    rest = sources.beyond_long_tail(pool, 16)
    # The ranks 16 to 19 of each class; class 0 has one example more than the others.
    assert rest.inputs[:, 0].tolist() == list(range(48, 60))
    assert rest.targets.tolist() == [0, 1, 2] * 4
    for largest in (-1, 21):
        with pytest.raises(UserError, match="largest must be from 0 to 20"):
            sources.long_tail(pool, 4.0, largest)
    with pytest.raises(UserError, match="from 1 to 16, largest, not 17"):
        sources.long_tail(pool, 17, largest=16)
    for largest in (0, 20):
        with pytest.raises(UserError, match="set largest to less than 20"):
            sources.beyond_long_tail(pool, largest)


@pytest.mark.parametrize("name", ["cifar10_lt", "cifar100_lt"])
def test_long_tailed_cifar_takes_its_option(tmp_path, name):
    with pytest.raises(UserError, match="imbalance|No cifar"):
        sources.SOURCES[name](str(tmp_path), imbalance=0.0)


def write_leaf(folder, users):
    folder.mkdir(parents=True)
    for number, (user, (x, y)) in enumerate(users.items()):
        content = {"users": [user], "num_samples": [len(y)], "user_data": {user: {"x": x, "y": y}}}
        (folder / f"all_data_{number}.json").write_text(json.dumps(content))


@pytest.mark.parametrize("folder", ["femnist/data/all_data", "all_data"])
def test_femnist_as_leaf_writes_it(tmp_path, folder):
    images = PIXELS[:3, :28, :28, 0]
    values = (images / 255).reshape(3, -1).tolist()
    users = {"f0001_41": (values[:2], [0, 61]), "f0000_14": (values[2:], [10])}
    write_leaf(tmp_path / folder, users)
    pool = sources.SOURCES["femnist"](str(tmp_path))
    np.testing.assert_array_equal(pool.inputs[..., 0], images)
    assert pool.targets.tolist() == [0, 61, 10] and pool.owners.tolist() == [0, 0, 1]


def test_femnist_files_that_are_wrong(tmp_path):
    with pytest.raises(UserError, match="images.npy, labels.npy, writer.npy"):
        sources.SOURCES["femnist"](str(tmp_path))
    write_leaf(tmp_path / "all_data", {"f0001_41": ([[0.5] * 700], [3])})
    with pytest.raises(UserError, match="f0001_41 that are not 784"):
        sources.SOURCES["femnist"](str(tmp_path))
    (tmp_path / "all_data" / "all_data_0.json").write_text('{"users": ["f0')
    with pytest.raises(UserError, match="all_data_0.json is truncated"):
        sources.SOURCES["femnist"](str(tmp_path))
    npy_xz(tmp_path / "images.npy.xz", PIXELS[:3, :28, :28, 0])
    np.save(tmp_path / "labels.npy", np.array([1, 2, 62]))
    np.save(tmp_path / "writer.npy", np.array([1, 1, 0]))
    with pytest.raises(UserError, match="labels.npy has the label 62"):
        sources.SOURCES["femnist"](str(tmp_path))
    np.save(tmp_path / "labels.npy", np.array([1, 2]))
    with pytest.raises(UserError, match="3 images but .* 2 entries"):
        sources.SOURCES["femnist"](str(tmp_path))


def write_omniglot(file, alphabets):
    """Two characters of each alphabet, each by two drawers; the drawing tells which it is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w") as archive:
        for alphabet in alphabets:
            for character in (1, 2):
                for drawer in (1, 2):
                    drawing = Image.new("1", (105, 105), 1)
                    drawing.putpixel((drawer, character), 0)
                    content = io.BytesIO()
                    drawing.save(content, "png")
                    name = f"{alphabet}/character{character:02}/{7:04}_{drawer:02}.png"
                    archive.writestr(f"{file.stem}/{name}", content.getvalue())


def test_omniglot(tmp_path):
    write_omniglot(tmp_path / "omniglot" / "images_background_small1.zip", ["Greek", "Korean"])
    write_omniglot(tmp_path / "omniglot" / "images_background_small2.zip", ["Greek", "Tagalog"])
    load = sources.SOURCES["omniglot"]
    pool = load(str(tmp_path), side=105)
    assert pool.inputs.shape == (12, 105, 105, 1) and pool.num_classes == 3
    assert pool.owners.tolist() == [1, 2] * 6 and pool.owner_names[2] == "drawer 2"
    for image, drawer, row in zip(
        pool.inputs, pool.owners, np.arange(12) // 2 % 2 + 1, strict=True
    ):
        assert image[row, drawer] == 0 and (image == 255).sum() == 105 * 105 - 1
    characters = load(str(tmp_path), owners="alphabet", labels="character")
    assert characters.inputs.shape == (12, 28, 28, 1) and characters.num_classes == 6
    assert characters.owners.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert characters.owner_names == ("Greek", "Korean", "Tagalog")
    with pytest.raises(UserError, match="did you mean 'drawer'"):
        load(str(tmp_path), owners="drawers")


def test_omniglot_files_that_are_wrong(tmp_path):
    load = sources.SOURCES["omniglot"]
    with pytest.raises(UserError, match="put images_background.zip"):
        load(str(tmp_path))
    file = tmp_path / "images_background.zip"
    write_omniglot(file, ["Greek"])
    content = file.read_bytes()
    file.write_bytes(content[:-30])
    with pytest.raises(UserError, match="truncated or damaged zip"):
        load(str(tmp_path))
    file.write_bytes(content.replace(b"IDAT", b"IDOT"))
    with pytest.raises(UserError, match="damaged zip"):  # its checksum is wrong
        load(str(tmp_path))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("Greek/readme.txt", "")
    with pytest.raises(UserError, match="has no ALPHABET"):
        load(str(tmp_path))


def idx(array):
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def test_emnist_is_turned_upright(tmp_path):
    images = PIXELS[:2, :28, :28, 0]
    for split in ("train", "test"):
        stem = tmp_path / "gzip" / f"emnist-letters-{split}"
        stem.parent.mkdir(exist_ok=True)
        stored = np.ascontiguousarray(images.swapaxes(1, 2))
        stem.with_name(f"{stem.name}-images-idx3-ubyte").write_bytes(idx(stored))
        labels = np.array([1, 26], np.uint8)
        stem.with_name(f"{stem.name}-labels-idx1-ubyte").write_bytes(idx(labels))
    pool = sources.SOURCES["emnist"](str(tmp_path), part="letters")
    np.testing.assert_array_equal(pool.inputs[..., 0], np.concatenate([images, images]))
    assert pool.targets.tolist() == [0, 25, 0, 25] and pool.num_classes == 26
    with pytest.raises(UserError, match="emnist-digits-train-images-idx3-ubyte"):
        sources.SOURCES["emnist"](str(tmp_path))
    with tfds.testing.mock_data(num_examples=3):
        pool = sources.SOURCES["emnist"](str(tmp_path), part="digits")
    assert pool.inputs.shape == (6, 28, 28, 1) and pool.num_classes == 10
