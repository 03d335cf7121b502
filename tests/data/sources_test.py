"""Sources: the arrays they return, and the sentence for each way a file can be wrong."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from pfljax.data import sources
from pfljax.errors import UserError

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = sources.IDX_FILES
LOADERS = {"mnist": sources.load_mnist, "fashion-mnist": sources.load_fashion_mnist}


def idx_bytes(array):
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def images(count, start=0):
    values = np.arange(start, start + count * 28 * 28) % 251
    return values.astype(np.uint8).reshape(count, 28, 28)


def write_idx(folder, suffix=".gz", **replaced):
    """Writes five training and three test examples; `replaced` gives other arrays."""
    arrays = {
        TRAIN_IMAGES: images(5),
        TRAIN_LABELS: np.array([0, 1, 2, 3, 9], np.uint8),
        TEST_IMAGES: images(3, start=7),
        TEST_LABELS: np.array([4, 5, 6], np.uint8),
    }
    for file, array in arrays.items():
        content = idx_bytes(replaced.get(file, array))
        folder.mkdir(parents=True, exist_ok=True)
        packed = gzip.compress(content) if suffix else content
        (folder / f"{file}{suffix}").write_bytes(packed)


def test_digits_are_those_of_scikit_learn():
    digits = sources.load_digits()
    assert digits.inputs.shape == (1797, 8, 8, 1) and digits.inputs.dtype == np.uint8
    assert (digits.inputs.min(), digits.inputs.max()) == (0, 16)
    assert digits.targets.dtype == np.int32
    assert np.array_equal(np.unique(digits.targets), np.arange(digits.num_classes))
    assert (digits.mean, digits.std) == (0.0, 16.0)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    "folder, loader",
    [
        ("", sources.load_mnist),
        ("mnist", sources.load_mnist),
        ("", sources.load_fashion_mnist),
        ("fashion-mnist", sources.load_fashion_mnist),
        ("fashion_mnist", sources.load_fashion_mnist),
    ],
)
def test_idx_files_are_found_and_joined(tmp_path, folder, loader, suffix):
    write_idx(tmp_path / folder, suffix)
    loaded = loader(str(tmp_path))
    expected = np.concatenate([images(5), images(3, start=7)])[..., np.newaxis]
    np.testing.assert_array_equal(loaded.inputs, expected)
    assert loaded.inputs.dtype == np.uint8
    assert loaded.targets.tolist() == [0, 1, 2, 3, 9, 4, 5, 6]
    assert loaded.targets.dtype == np.int32
    assert (loaded.mean, loaded.std, loaded.num_classes) == (127.5, 127.5, 10)


def test_a_gz_name_that_a_browser_unpacked_is_read(tmp_path):
    write_idx(tmp_path)
    path = tmp_path / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(gzip.decompress(path.read_bytes()))
    assert len(sources.load_mnist(str(tmp_path)).targets) == 8


def test_each_name_finds_its_own_folder(tmp_path):
    write_idx(tmp_path / "mnist")
    write_idx(tmp_path / "fashion-mnist", **{TRAIN_LABELS: np.full(5, 8, np.uint8)})
    assert sources.load_mnist(str(tmp_path)).targets[0] == 0
    assert sources.load_fashion_mnist(str(tmp_path)).targets[0] == 8


def truncated_gzip(folder):
    path = folder / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:-40])
    return path, "truncated or damaged gzip"


def damaged_gzip(folder):
    path = folder / f"{TRAIN_LABELS}.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    return path, "truncated or damaged gzip"


def wrong_magic(folder):
    path = folder / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(b"<html>not found</html>")
    return path, "starts with"


def labels_in_place_of_images(folder):
    path = folder / f"{TRAIN_IMAGES}.gz"
    path.write_bytes((folder / f"{TRAIN_LABELS}.gz").read_bytes())
    return path, "starts with 00000801"


def empty_file(folder):
    path = folder / f"{TEST_LABELS}.gz"
    path.write_bytes(b"")
    return path, "starts with nothing"


def short_header(folder):
    path = folder / f"{TEST_IMAGES}.gz"
    path.write_bytes(idx_bytes(images(3))[:9])
    return path, "inside its header"


def missing_bytes(folder):
    path = folder / f"{TEST_IMAGES}.gz"
    path.write_bytes(idx_bytes(images(3))[:-1])
    return path, "claims 2352"


def surplus_bytes(folder):
    path = folder / f"{TEST_LABELS}.gz"
    path.write_bytes(idx_bytes(np.zeros(3, np.uint8)) + b"\0")
    return path, "has 4 bytes"


def unequal_counts(folder):
    path = folder / f"{TEST_LABELS}.gz"
    path.write_bytes(idx_bytes(np.zeros(4, np.uint8)))
    return path, "3 images but"


def label_out_of_range(folder):
    path = folder / f"{TRAIN_LABELS}.gz"
    path.write_bytes(idx_bytes(np.full(5, 10, np.uint8)))
    return path, "label 10"


def wrong_image_size(folder):
    path = folder / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(idx_bytes(np.zeros((5, 32, 32), np.uint8)))
    return path, "32x32"


def one_file_missing(folder):
    (folder / f"{TEST_LABELS}.gz").unlink()
    return folder, f"lacks {TEST_LABELS}"


FAULTS = [
    truncated_gzip,
    damaged_gzip,
    wrong_magic,
    labels_in_place_of_images,
    empty_file,
    short_header,
    missing_bytes,
    surplus_bytes,
    unequal_counts,
    label_out_of_range,
    wrong_image_size,
    one_file_missing,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_wrong_file_is_named(tmp_path, fault):
    write_idx(tmp_path)
    path, message = fault(tmp_path)
    with pytest.raises(UserError) as refusal:
        sources.load_mnist(str(tmp_path))
    assert str(path) in str(refusal.value)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name, loader", LOADERS.items())
def test_tfds_is_used_where_there_are_no_idx_files(tmp_path, name, loader):
    with tfds.testing.mock_data(num_examples=7):
        loaded = loader(str(tmp_path))
    assert loaded.name == name.replace("-", "_")
    assert loaded.inputs.shape == (14, 28, 28, 1) and loaded.inputs.dtype == np.uint8
    assert loaded.targets.shape == (14,) and loaded.targets.dtype == np.int32
    assert len(np.unique(loaded.inputs.reshape(14, -1), axis=0)) > 1


def test_nothing_there_names_directories_files_and_remedy(tmp_path):
    with pytest.raises(UserError) as refusal:
        sources.load_fashion_mnist(str(tmp_path))
    message = str(refusal.value)
    for part in (*sources.IDX_FILES, "tfds build fashion_mnist", str(tmp_path)):
        assert part in message
    assert str(tmp_path / "fashion-mnist") in message
    assert str(tmp_path / "fashion_mnist") in message
    assert "\n" not in message


@pytest.mark.parametrize("name, loader", LOADERS.items())
def test_the_real_files(name, loader):
    root = os.environ.get("PFLJAX_DATA", "")
    if not root or not (Path(root) / name).is_dir():
        pytest.skip(f"PFLJAX_DATA names no folder that holds {name}")
    loaded = loader(root)
    assert loaded.inputs.shape == (70000, 28, 28, 1) and loaded.inputs.dtype == np.uint8
    train, test = loaded.targets[:60000], loaded.targets[60000:]
    if name == "mnist":
        assert np.bincount(test).tolist() == [
            980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009
        ]  # fmt: skip
        assert train[:5].tolist() == [5, 0, 4, 1, 9]
        assert abs(loaded.inputs[:60000].mean() / 255 - 0.1307) < 1e-4
    else:
        assert np.bincount(train).tolist() == [6000] * 10
        assert np.bincount(test).tolist() == [1000] * 10
        assert abs(loaded.inputs[:60000].mean() / 255 - 0.2860) < 1e-4
