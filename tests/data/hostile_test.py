"""Damaged or hostile files: each gives a one-line error, and none is read wrongly.

`VALID` writes a small valid data set for every kind of reader. The table of hostile files changes
one of their files in the way its name says; the damage test flips bits and cuts files at random.
"""

import collections
import contextlib
import gzip
import io
import json
import lzma
import os
import pickle
import re
import signal
import struct
import warnings
import zipfile
import zlib

import annotations
import histories
import numpy as np
import pytest
import scipy.io
import scipy.sparse
from PIL import Image

from pfljax import data
from pfljax.data import reading
from pfljax.errors import UserError

SECONDS = 20  # for one data set of a few examples
LABELS = np.arange(24) % 3


@pytest.fixture(autouse=True)
def small_limits(monkeypatch):
    """A bomb of some megabytes is then as large as one of gigabytes."""
    monkeypatch.setattr(reading, "LARGEST_UNPACKED", 2**21)


def draw(*shape, low=0, high=255, dtype=np.uint8):
    return np.random.default_rng(0).integers(low, high, shape).astype(dtype)


def npy(array):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array))
    return stream.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def zipped(members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


# The valid data sets: each function writes one, and returns the settings that load it.


def npz_arrays(**changed):
    return {
        "name": "made",
        "inputs": draw(24, 5).astype(np.float32),
        "targets": LABELS.astype(np.int32),
        "train_offsets": np.int32([0, 12]),
        "train_sizes": np.int32([8, 8]),
        "validation_offsets": np.int32([8, 20]),
        "validation_sizes": np.int32([1, 1]),
        "test_offsets": np.int32([9, 21]),
        "test_sizes": np.int32([3, 3]),
        "num_classes": np.int32(3),
        "num_unseen": np.int32(0),
        "mean": np.float64(0),
        "std": np.float64(1),
    } | changed


def npz(root, **changed):
    np.savez_compressed(root / "f.npz", **npz_arrays(**changed))
    return {"name": "npz", "dir": str(root / "f.npz")}


def store(root):
    with data.StoreWriter(str(root), name="made", num_classes=3) as writer:
        for _ in range(2):
            writer.add(draw(12, 5).astype(np.float32), LABELS[:12], train=8)
    return {"name": "store", "dir": str(root)}


def pfllib(root, x=None, y=None):
    for client in (0, 1):
        for part in ("train", "test"):
            (root / part).mkdir(exist_ok=True)
            held = {"x": draw(12, 5).astype(np.float32), "y": LABELS[:12].astype(np.int64)}
            if client and part == "train":
                held |= {key: value for key, value in (("x", x), ("y", y)) if value is not None}
            np.savez_compressed(root / part / f"{client}.npz", data=held)
    write(root / "config.json", '{"num_clients": 2}')
    return {"name": "pfllib", "dir": str(root)}


def idx(array):
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def mnist(root):
    for part in ("train", "t10k"):
        write(root / f"{part}-images-idx3-ubyte.gz", gzip.compress(idx(draw(12, 28, 28))))
        labels = LABELS[:12].astype(np.uint8)
        write(root / f"{part}-labels-idx1-ubyte.gz", gzip.compress(idx(labels)))
    return {"name": "mnist"}


def femnist(root, **changed):
    arrays = {"images": draw(24, 28, 28), "labels": LABELS, "writer": np.arange(24) // 12}
    for name, array in (arrays | changed).items():
        write(root / f"{name}.npy", npy(array))
    return {"name": "femnist"}


def leaf(root, x=None, y=None, **others):
    pixels = np.round(draw(12, 784) / 255, 3).tolist()
    users = {
        "a": {"x": pixels, "y": LABELS[:12].tolist()},
        "b": {
            "x": pixels if x is None else x,
            "y": LABELS[:12].tolist() if y is None else y,
        },
    }
    content = {"users": ["a", "b"], "num_samples": [12, 12], "user_data": users} | others
    write(root / "all_data" / "all.json", json.dumps(content))
    return {"name": "femnist"}


def leaf_texts(root, x=None):
    users = {name: {"x": x or ["to be or ", "o be or n"], "y": ["n", "o"]} for name in "ab"}
    content = {"users": ["a", "b"], "num_samples": [2, 2], "user_data": users}
    write(root / "all_data" / "all.json", json.dumps(content))
    return {"name": "shakespeare", "options": {"length": 2}}


def cifar(root, protocol=2, **changed):
    batch = {"data": draw(4, 3072), "labels": [0, 1, 2, 3]} | changed
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        write(root / name, pickle.dumps(batch, protocol))
    return {"name": "cifar10"}


def cifar_binary(root):
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        records = np.concatenate([LABELS[:4, None], draw(4, 3072)], axis=1)
        write(root / f"{name}.bin", records.astype(np.uint8).tobytes())
    return {"name": "cifar10"}


def mat(path, compress=True, **arrays):
    scipy.io.savemat(path, arrays, do_compression=compress)


def svhn(root, **changed):
    for part in ("train", "test"):
        held = {"X": draw(32, 32, 3, 8), "y": LABELS[:8, None].astype(np.uint8)}
        mat(root / f"{part}_32x32.mat", **held | (changed if part == "test" else {}))
    return {"name": "svhn"}


def office(root, **changed):
    for domain in ("amazon", "caltech", "dslr", "webcam"):
        held = {"fts": draw(6, 800, high=9).astype(float), "labels": 1 + LABELS[:6, None]}
        mat(root / f"{domain}_SURF_L10.mat", **held | (changed if domain == "dslr" else {}))
    return {"name": "office_caltech"}


def cells(*arrays):
    stored = np.empty((1, len(arrays)), object)
    for number, array in enumerate(arrays):
        stored[0, number] = array
    return stored


def school(root, x=None, y=None):
    x = [draw(12, 4, high=9)] * 2 if x is None else x
    y = [draw(12, 1, high=50).astype(float)] * 2 if y is None else y
    mat(root / "school.mat", X=cells(*x), Y=cells(*y))
    return {"name": "school"}


def landmine(root):
    features = [draw(12, 9).astype(float)] * 2
    mat(root / "LandmineData.mat", feature=cells(*features), label=cells(*[LABELS[:12] % 2] * 2))
    return {"name": "landmine"}


def omniglot(root, **others):
    members = {
        f"x/{alphabet}/character01/{number:04}_{drawer:02}.png": png(draw(20, 20))
        for number, alphabet in enumerate("AB")
        for drawer in range(1, 9)
    }
    write(root / "images_background.zip", zipped(members | others))
    return {"name": "omniglot", "options": {"side": 8}}


def images(root):
    for label in ("cat", "dog"):
        for number in range(6):
            write(root / label / f"{number}.png", png(draw(9, 9, 3) + np.uint8(number)))
    return {"name": "image_classes", "options": {"side": 8}}


def iwildcam(root, rows=None):
    lines = "".join(f"a{number}.png,{number % 3},{number % 2}\n" for number in range(12))
    write(root / "metadata.csv", f"filename,y,location_remapped\n{rows or lines}")
    for number in range(12):
        write(root / "train" / f"a{number}.png", png(draw(9, 9, 3)))
    return {"name": "iwildcam", "options": {"side": 8}}


def shakespeare(root):
    write(root / "input.txt", "A:\nto be or not to be\n\nB:\nthat is the question\n" * 3)
    return {"name": "shakespeare", "options": {"length": 4}}


def news(root, row=""):
    text = '"1","Oil","up again"\n"2","Gas","down"\n' * 6
    for part in ("train", "test"):
        write(root / f"{part}.csv", text + (row if part == "train" else ""))
    return {"name": "ag_news", "options": {"length": 8, "vocabulary": 20}}


def news_ids(root):
    for part in ("train", "test"):
        write(root / f"{part}_tokens.npy", npy(1 + draw(36, high=30).astype(np.int32)))
        write(root / f"{part}_lengths.npy", npy(np.full(12, 3)))
        write(root / f"{part}_labels.npy", npy(LABELS[:12]))
    return {"name": "ag_news", "options": {"length": 4, "vocabulary": 20}}


def amazon(root, row="1 0:1 7:2\n"):
    for domain in ("books", "dvd", "electronics", "kitchen"):
        for part in ("train", "test"):
            write(root / f"{domain}_{part}.svmlight", "1 0:1 4999:2\n-1 7:3\n" * 2)
    write(root / "books_train.svmlight", row)
    return {"name": "amazon_review"}


def har(root, **changed):
    arrays = {
        "f16": draw(24, 128, 9).astype(np.float16),
        "labels": LABELS,
        "subjects": np.arange(24) // 12,
    }
    for name, array in (arrays | changed).items():
        write(root / f"inertial_{name}.npy", npy(array))
    return {"name": "har"}


def wisdm(root, cell=None, user="1"):
    rows = [[number, number % 2, *draw(43, high=99), "Walking"] for number in range(24)]
    rows[3][1:7] = [user, *([cell] * 5 if cell else rows[3][2:7])]
    body = "\n".join(",".join(map(str, row)) for row in rows)
    write(root / "WISDM_ar_v1.1_transformed.arff", f"@relation toy\n@data\n{body}\n")
    return {"name": "wisdm"}


def parkinsons(root, column=9, cell="1.5"):
    rows = [[number % 2, *(draw(21, high=60) + number)] for number in range(24)]
    rows[3][column] = cell
    names = ",".join(f"v{number}" for number in range(16))
    header = f"subject#,age,sex,test_time,motor_UPDRS,total_UPDRS,{names}"
    body = "\n".join(",".join(map(str, row)) for row in rows)
    write(root / "parkinsons_updrs.data", f"{header}\n{body}\n")
    return {"name": "parkinsons"}


RATINGS = "userId,movieId,rating,timestamp\n" + "".join(
    f"{1 + number // 6},{number % 6},{1 + number % 4}.0,{number}\n" for number in range(24)
)


def movielens(root, old="", new=""):
    write(root / "ratings.csv", RATINGS.replace(old, new, 1) if old else RATINGS)
    return {"name": "movielens"}


FILMS = "movieId,title,genres\n" + "".join(
    f"{number},Film {number} (199{number}),Drama|War\n" for number in range(8)
)
SOME_RATINGS = (
    RATINGS.partition("\n")[0]
    + "\n"
    + "".join(
        f"{1 + number // 6},{(number // 6 + number % 6) % 8},{1 + number % 4}.0,{number}\n"
        for number in range(24)
    )
)
TAGS = "userId,movieId,tag,timestamp\n1,0,funny,3\n1,1,dark,4\n"


def rated_films(root):
    write(root / "ratings.csv", SOME_RATINGS)
    write(root / "movies.csv", FILMS)
    write(root / "tags.csv", TAGS)
    return {"name": "movielens", "options": {"feedback": "histories", "num_others": 2}}


def movielens_zip(root):
    write(root / "ml-latest-small.zip", zipped({"ml-latest-small/ratings.csv": RATINGS}))
    return {"name": "movielens"}


def pamap2(root, cell="1"):
    table = np.full((16, 54), "1", dtype="U9")
    table[:, 3:] = draw(16, 51).astype(str)
    table[3, 5] = cell
    text = "\n".join(" ".join(row) for row in table)
    for subject in range(101, 110):
        write(root / f"subject{subject}.dat", text)
    return {"name": "pamap2", "options": {"length": 4}}


def popquorn(root):
    annotations.write(root, "popquorn")
    return {"name": "popquorn"}


def pgraphrag(root):
    histories.write_reviews(root)
    return {"name": "pgraphrag"}


def lamp(root):
    histories.write_lamp(root)
    return {"name": "lamp", "options": {"words": 16}}


def peft_u(root):
    texts = {str(n): {"text": f"word{n} of", "label": ["ab"[n % 2]]} for n in range(8)}
    content = {str(user): {"train": texts} for user in range(4)}
    histories.write_json(root / "user_data_leaked.json", content)
    return {"name": "peft_u", "options": {"words": 16}}


def features_in_8_bits(*names):
    rows = {name: draw(9, 3, low=-127, dtype=np.int8) for name in names}
    return {**rows, **{f"{name}_scale": np.full(9, 0.001, np.float32) for name in names}}


def prism(root):
    columns = {name: draw(24, high=9, dtype=np.int16) for name in ("question", "first", "second")}
    columns |= {"user": draw(24, low=-1, high=3, dtype=np.int16), "label": draw(24, high=3)}
    texts = {"answer_text": draw(90, low=97, high=122), "answer_offsets": 10 * np.arange(10)}
    np.savez_compressed(root / "prism_pairs.npz", **columns, **texts)
    np.savez_compressed(root / "features_wordllama.npz", **features_in_8_bits("answer"))
    return {"name": "prism_pairs"}


def persona(root):
    columns = {name: draw(24, high=9, dtype=np.int16) for name in ("question", "chosen")}
    columns |= {"rejected": (columns["chosen"] + 1) % 9, "tier": draw(24, high=3)}
    columns["user"] = np.arange(24, dtype=np.int16) // 8
    texts = {"answer_text": draw(90, low=97, high=122), "answer_offsets": 10 * np.arange(10)}
    np.savez_compressed(root / "persona_feedback.npz", **columns, **texts)
    np.savez_compressed(root / "features_use.npz", **features_in_8_bits("answer", "persona"))
    return {"name": "persona_feedback"}


VALID = [
    *(npz, store, pfllib, mnist, femnist, leaf, leaf_texts, cifar, cifar_binary, svhn, office),
    *(school, landmine, omniglot, images, iwildcam, shakespeare, news, news_ids, amazon, har),
    *(wisdm, parkinsons, movielens, movielens_zip, pamap2, popquorn),
    *(pgraphrag, lamp, peft_u, prism, persona, rated_films),
]


class Hang(BaseException):
    """No exception that a reader could catch."""


@contextlib.contextmanager
def alarm():
    def ring(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def wrong_with(dataset):
    """What a device would compute wrongly with: found without the library's own checks."""
    dataset = dataset.gathered()
    with np.errstate(all="ignore"):
        values = np.asarray(dataset.inputs).astype(np.float32)
    targets = np.asarray(dataset.targets)
    if not values.size or not np.isfinite(values).all():
        return "inputs"
    if not np.isfinite(targets).all() or not np.isfinite(dataset.mean).all():
        return "targets or mean"
    # The targets of a recommendation are ratings, and its classes are tags of items.
    classes = 0 if dataset.task == "recommendation" else dataset.num_classes
    if classes and not (0 <= targets.min() and targets.max() < classes):
        return "labels"
    for column, size in enumerate(dataset.vocabulary):
        ids = values if len(dataset.vocabulary) == 1 else values[..., column]
        if ids.min() < 0 or ids.max() >= size:
            return "ids"
    return None


def outcome(root, settings):
    """Returns refused, loaded, wrong, hang or traceback, and the sentence or the exception."""
    defaults = {"partition": "iid", "num_clients": 2, "dir": str(root)}
    try:
        # Warnings count for errors here as everywhere in these tests.
        with alarm(), warnings.catch_warnings(action="error"):
            dataset = data.load(**defaults | settings)
            fault = wrong_with(dataset)
    except UserError as error:
        return "refused", str(error)
    except Hang:
        return "hang", ""
    except Exception as error:
        return "traceback", repr(error)
    return ("wrong", fault) if fault else ("loaded", "")


needs_alarm = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no SIGALRM here")


@needs_alarm
@pytest.mark.parametrize("valid", VALID, ids=lambda valid: valid.__name__)
def test_what_is_valid_is_loaded(tmp_path, valid):
    assert outcome(tmp_path, valid(tmp_path)) == ("loaded", "")


# The hostile files: each row writes a valid data set, and then replaces one of its files.


def with_file(valid, name, content):
    def hostile(root):
        settings = valid(root)
        write(root / name, content)
        return settings

    return hostile


def with_value(array, value, dtype=None):
    array = np.array(array, dtype)
    array.flat[7] = value
    return array


def header(descr, shape, pad=0):
    content = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}" + " " * pad
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(content)) + content.encode()


def nested(depth=2000):
    content = b"(" * depth
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(content)) + content


def png_of_size(width, height):
    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + start + pixels + chunk(b"IEND", b"")


def encrypted(content):
    """Sets the flag of encryption in every header of a zip archive."""
    content = bytearray(content)
    for start, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        for found in re.finditer(re.escape(start), bytes(content)):
            content[found.start() + flags] |= 1
    return bytes(content)


def store_header(root):
    settings = store(root)
    write(root / "inputs.npy", nested())
    return settings


def matlab_bomb(root):
    settings = office(root)
    mat(root / "dslr_SURF_L10.mat", fts=np.zeros((2**19, 8)), labels=np.ones((3, 1)))
    return settings


def npz_member(key, content):
    def hostile(root):
        stored = {f"{name}.npy": npy(array) for name, array in npz_arrays().items()}
        write(root / "f.npz", zipped(stored | {f"{key}.npy": content}))
        return {"name": "npz", "dir": str(root / "f.npz")}

    return hostile


def pipe(valid, name, **settings):
    def hostile(root):
        settings_of_valid = valid(root)
        (root / name).unlink(missing_ok=True)
        os.mkfifo(root / name)
        return settings_of_valid | settings

    return hostile


def no_image(name, content=b"x"):
    return with_file(images, f"cat/{name}", content)


def grey(mode, value):
    stream = io.BytesIO()
    Image.fromarray(np.full((9, 9), value, mode)).save(stream, "TIFF")
    return stream.getvalue()


def remembers_much(root):
    settings = cifar(root)
    write(root / "test_batch", pickle.PROTO + b"\x02Nr" + struct.pack("<I", 2**31) + b".")
    return settings


class Laughs:
    """A list of lists of lists, which is short in a pickle and exponential in an array."""

    def __new__(cls):
        held = [1] * 16
        for _ in range(40):
            held = [held, held]
        return held


X = np.round(draw(12, 784) / 255, 3).tolist()
Y = LABELS[:12].tolist()
HOSTILE = {
    # Values that are not numbers, or that float32 cannot represent.
    "arff 1e39": (lambda root: wisdm(root, "1e39"), "1e\\+39 .* float32 cannot represent"),
    "arff 1e999": (lambda root: wisdm(root, "1e999"), "the value inf in column"),
    "arff inf": (lambda root: wisdm(root, "inf"), "the value inf in column"),
    "arff nan": (lambda root: wisdm(root, "nan"), "the value nan in column"),
    "arff underscores": (lambda root: wisdm(root, "1_0"), "an underscore"),
    "arff user 1.5": (lambda root: wisdm(root, user="1.5"), "the user 1.5 in data row 4"),
    "arff user ?": (lambda root: wisdm(root, user="?"), "without number or user"),
    "csv 1e39": (lambda root: parkinsons(root, cell="1e39"), "in the column v3 of data row 4"),
    "csv nan": (lambda root: parkinsons(root, cell="nan"), "nan in the column v3"),
    "csv inf target": (lambda root: parkinsons(root, 5, "inf"), "inf in the column total_UPDRS"),
    "csv nan target": (lambda root: parkinsons(root, 5, "nan"), "nan in the column total_UPDRS"),
    "csv nan subject": (lambda root: parkinsons(root, 0, "nan"), "nan in the column subject#"),
    "csv subject 1.5": (lambda root: parkinsons(root, 0, "1.5"), "the subject 1.5"),
    "rating inf": (lambda root: movielens(root, ",3.0,", ",inf,"), "rating inf in data row 3"),
    "rating 1e39": (lambda root: movielens(root, ",3.0,", ",1e39,"), "rating 1e\\+39"),
    "rating -99": (lambda root: movielens(root, ",3.0,", ",-99,"), "rating -99"),
    "rating of nan": (lambda root: movielens(root, "1,2,", "nan,2,"), "userId nan in data row 3"),
    "rating at nan": (lambda root: movielens(root, ".0,2\n", ".0,nan\n"), "timestamp"),
    "signal inf": (lambda root: pamap2(root, "inf"), "the value inf in column"),
    "signal 1e39": (lambda root: pamap2(root, "1e39"), "float32 cannot represent"),
    "npy nan": (
        lambda root: har(root, f16=with_value(draw(24, 128, 9), np.nan, np.float16)),
        "the value nan in column \\(0, 7\\) of row 0",
    ),
    "npy inf": (
        lambda root: har(root, f16=with_value(draw(24, 128, 9), np.inf, np.float16)),
        "the value inf in column",
    ),
    "npy pixels nan": (
        lambda root: femnist(root, images=with_value(draw(24, 28, 28), np.nan, np.float32)),
        "images.npy has the value nan",
    ),
    "npy pixels to 1": (
        lambda root: femnist(root, images=draw(24, 28, 28) / 255),
        "a whole number from 0 to 255",
    ),
    "npy complex": (lambda root: femnist(root, images=draw(24, 28, 28) + 1j), "dtype complex128"),
    "npy strings": (lambda root: femnist(root, labels=LABELS.astype(str)), "dtype <U"),
    "npy writer 1.5": (lambda root: femnist(root, writer=LABELS + 0.5), "the owner 0.5"),
    "npy label 62": (lambda root: femnist(root, labels=LABELS + 60), "the label 62"),
    "npz 1e300": (lambda root: npz(root, inputs=np.full((24, 5), 1e300)), "1e\\+300 in column 0"),
    "npz nan": (lambda root: npz(root, inputs=with_value(draw(24, 5), np.nan, float)), "client 0"),
    "npz inf target": (
        lambda root: npz(
            root, targets=with_value(LABELS, np.inf, np.float32), task="regression", num_classes=0
        ),
        "targets, has the value inf of row 7 \\(client 0\\)",
    ),
    "pfllib 1e300": (lambda root: pfllib(root, x=np.full((12, 5), 1e300)), "train/1.npz has the"),
    # Counts and pixels that uint8 does not hold.
    "mat 300": (lambda root: office(root, fts=np.full((6, 800), 300.0)), "the value 300"),
    "mat 0.7": (lambda root: office(root, fts=np.full((6, 800), 0.7)), "the value 0.7"),
    "mat -3": (lambda root: office(root, fts=np.full((6, 800), -3.0)), "the value -3"),
    "mat nan": (lambda root: office(root, fts=np.full((6, 800), np.nan)), "the value nan"),
    "mat complex": (lambda root: office(root, fts=np.full((6, 800), 1j)), "dtype complex128"),
    "mat sparse": (lambda root: office(root, fts=scipy.sparse.csc_matrix((6, 800))), "dslr"),
    "mat strings": (lambda root: office(root, labels=np.array(list("abcdef"))), "dtype <U1"),
    "mat label 1.5": (lambda root: office(root, labels=np.full((6, 1), 1.5)), "the label 0.5"),
    "mat pixels 0.5": (lambda root: svhn(root, X=draw(32, 32, 3, 8) / 2), "test_32x32.mat"),
    "mat no cells": (lambda root: school(root, x=[], y=[]), "school.mat"),
    "mat inf": (lambda root: school(root, y=[np.full((12, 1), np.inf)] * 2), "in cell 0 of Y"),
    "mat strings in cells": (lambda root: school(root, y=[np.array(["a"] * 12)] * 2), "school.mat"),
    "svmlight 1.5": (lambda root: amazon(root, "1 0:1.5\n"), "the value 1.5"),
    "svmlight nan": (lambda root: amazon(root, "1 0:nan\n"), "the value nan"),
    "svmlight 256": (lambda root: amazon(root, "1 0:256\n"), "the value 256"),
    "svmlight empty": (lambda root: amazon(root, ""), "books_train.svmlight .* \\(no rows\\)"),
    "svmlight index": (lambda root: amazon(root, f"1 {10**20}:1\n"), "books_train.svmlight"),
    # LEAF's JSON.
    "leaf nan": (lambda root: leaf(root, x=[*X[:-1], [np.nan] * 784]), "pixel nan of b"),
    "leaf null": (lambda root: leaf(root, x=[*X[:-1], [None] * 784]), "b that are not 784"),
    "leaf strings": (lambda root: leaf(root, x=[*X[:-1], ["0"] * 784]), "b that are not 784"),
    "leaf pixels to 255": (lambda root: leaf(root, x=(255 * np.array(X)).tolist()), "from 0 to 1"),
    "leaf pixels 1e999": (lambda root: leaf(root, x=[*X[:-1], [10**400] * 784]), "not 784"),
    "leaf short": (lambda root: leaf(root, x=[*X[:-1], [0]]), "b that are not 784"),
    "leaf dict": (lambda root: leaf(root, x={"0": 1}), "all.json is truncated or not in LEAF"),
    "leaf number": (lambda root: leaf(root, x=3), "all.json is truncated or not in LEAF"),
    "leaf y null": (lambda root: leaf(root, y=[None] * 12), "labels of b that are not numbers"),
    "leaf y mixed": (lambda root: leaf(root, y=[*Y[:-1], "1"]), "labels of b that are not numbers"),
    "leaf y nested": (lambda root: leaf(root, y=[[label] for label in Y]), "labels of b"),
    "leaf y dict": (lambda root: leaf(root, y=[{}] * 12), "labels of b that are not numbers"),
    "leaf y 1e30": (lambda root: leaf(root, y=[10**30] * 12), "labels of b that are not numbers"),
    "leaf y 1.5": (lambda root: leaf(root, y=[1.5] * 12), "the label 1.5"),
    "leaf no users": (lambda root: leaf(root, users=[], user_data={}), "no example of any user"),
    "leaf unlisted": (lambda root: leaf(root, users=["a"]), "not in LEAF's form"),
    "leaf twice": (lambda root: leaf(root, users=["a", "b", "b"]), "not in LEAF's form"),
    "leaf users null": (lambda root: leaf(root, users=None), "not in LEAF's form"),
    "leaf deep": (with_file(leaf, "all_data/all.json", "[" * 100_000), "not in LEAF's form"),
    "leaf texts": (lambda root: leaf_texts(root, x=[1, 2]), "windows of a that are not texts"),
    # What asks for more memory than there is.
    "gzip bomb": (
        with_file(mnist, "train-images-idx3-ubyte.gz", gzip.compress(bytes(2**22))),
        "train-images-idx3-ubyte.gz unpacks to more than",
    ),
    "xz bomb": (with_file(femnist, "images.npy", lzma.compress(bytes(2**22))), "unpacks to more"),
    "npz bomb": (npz_member("inputs", npy(np.zeros(2**22, np.uint8))), "f.npz unpacks to more"),
    "mat bomb": (matlab_bomb, "dslr_SURF_L10.mat unpacks to more than"),
    "zip bomb": (
        with_file(
            movielens_zip, "ml-latest-small.zip", zipped({"ml/ratings.csv": bytes(2**22)})
        ),
        "ml-latest-small.zip unpacks to more than",
    ),
    "npy of 8 TB": (with_file(femnist, "images.npy", header("|u1", (8 * 10**12,))), "claims"),
    "npy of large items": (with_file(femnist, "images.npy", header("|V2000000000", (9,))), "claim"),
    "npy nested": (with_file(femnist, "images.npy", nested()), "a damaged header"),
    "npy shape below 0": (with_file(femnist, "images.npy", header("|u1", (-1, 28, 28))), "images"),
    "npy objects": (with_file(femnist, "images.npy", header("|O", (1,)) + b"N."), "objects"),
    "npz of 8 TB": (npz_member("inputs", header("<f4", (2 * 10**12,))), "inputs.npy.* claims"),
    "store nested": (store_header, "inputs.npy is truncated or damaged"),
    "pickle of 2^31 objects": (remembers_much, "test_batch is damaged"),
    "pickle of lists": (lambda root: cifar(root, labels=Laughs()), "data_batch_1 is damaged"),
    "json deep": (with_file(pfllib, "config.json", "[" * 100_000), "config.json is not valid"),
    "image of 400 Mpx": (no_image("x.png", png_of_size(20_000, 20_000)), "x.png claims an impl"),
    "image of -1 px": (no_image("x.png", png_of_size(2**32 - 1, 1)), "x.png"),
    "zip of 400 Mpx": (
        lambda root: omniglot(
            root, **{"x/A/character01/0001_19.png": png_of_size(20_000, 20_000)}
        ),
        "0001_19.png, claims an implausible",
    ),
    "image sides": (lambda root: images(root) | {"options": {"side": 10**6}}, "side must be"),
    "text length": (lambda root: news(root) | {"options": {"length": 10**9}}, "length must be"),
    # Archives and names.
    "zip encrypted": (
        lambda root: with_file(
            omniglot, "images_background.zip", encrypted(zipped({"x/A/character01/1_01.png": b""}))
        )(root),
        "images_background.zip is encrypted",
    ),
    "npz encrypted": (
        lambda root: with_file(
            npz, "f.npz", encrypted(zipped({"inputs.npy": npy(np.zeros(3))}))
        )(root),
        "f.npz is encrypted",
    ),
    "zip drawer": (
        lambda root: omniglot(root, **{f"x/A/character01/0001_{'9' * 5000}.png": b""}),
        "number is not that of a drawer",
    ),
    "text nul": (lambda root: news(root, '"1","a","b\0"\n'), "a NUL character"),
    "text label": (lambda root: news(root, '"1_0","a","b"\n'), "train.csv is damaged at row 13"),
    "text empty": (with_file(shakespeare, "input.txt", ""), "input.txt has no speech"),
    "news empty": (with_file(news, "train.csv", ""), "train.csv is empty"),
    "ratings empty": (with_file(movielens, "ratings.csv", RATINGS[:32]), "not a table"),
    "list label 1_0": (lambda root: iwildcam(root, "a1.png,1_0,1\n"), "y that is not a whole"),
    "list owner": (lambda root: iwildcam(root, f"a1.png,1,{10**12}\n"), "owner 1000000000000"),
    # Contradictions of pfljax's own files and PFLlib's.
    "npz features": (lambda root: npz(root, inputs=np.zeros((24, 0))), "which contain no number"),
    "npz classes": (lambda root: npz(root, num_classes=np.int32(10**8)), "100000000 classes"),
    "npz label 3": (lambda root: npz(root, targets=np.int32(LABELS + 1)), "label 3 but 3 classes"),
    "npz label 0.5": (lambda root: npz(root, targets=LABELS + 0.5), "the label 0.5 in row 0"),
    "npz label -1": (lambda root: npz(root, targets=2 * (LABELS > 0) - 1), "the label -1 but"),
    "npz strings": (lambda root: npz(root, targets=LABELS.astype(str)), "from_arrays"),
    "npz id beyond": (
        lambda root: npz(root, inputs=draw(24, 5, high=50, dtype=np.int32), vocabulary=[20]),
        "has the id \\d+ of row \\d+ \\(client \\d\\) but a vocabulary of 20",
    ),
    "npz id below": (
        lambda root: npz(root, inputs=np.full((24, 5), -7, np.int32), vocabulary=[20]),
        "has the id -7 of row 0",
    ),
    "npz id of column": (
        lambda root: npz(root, inputs=draw(24, 2, low=5, high=9), vocabulary=[9, 3]),
        "in column 1 of row",
    ),
    "npz vocabulary": (
        lambda root: npz(root, inputs=draw(24, 5), vocabulary=[2_000_000_000]),
        "a vocabulary of 2000000000; at most",
    ),
    "npz ids of floats": (lambda root: npz(root, vocabulary=[999]), "dtype float32, but its vocab"),
    "npz next token": (
        lambda root: npz(
            root,
            inputs=draw(24, 5, high=3, dtype=np.int32),
            targets=np.zeros((24, 9), np.int32),
            task="next_token",
            vocabulary=[3],
        ),
        "targets of shape \\(24, 9\\), which do not match inputs of shape \\(24, 5\\)",
    ),
    "npz ranking": (
        lambda root: npz(root, targets=np.full(24, -5, np.int32), task="ranking", num_classes=0),
        "targets that are all 0",
    ),
    "npz int64 too fine": (
        lambda root: npz(root, inputs=10**18 + draw(24, 5).astype(np.int64)),
        "too close for float32 to distinguish",
    ),
    "npz float64 too fine": (
        lambda root: npz(root, inputs=1.7e9 + draw(24, 5) / 100), "too close for float32"
    ),
    "npz other keys": (with_file(npz, "f.npz", zipped({"x.npy": npy(LABELS)})), "from_arrays"),
    "pfllib classes": (
        with_file(pfllib, "config.json", '{"num_clients": 2, "num_classes": 2000000000}'),
        "2000000000 classes",
    ),
    "pfllib label 1e6": (
        lambda root: pfllib(root, y=np.full(12, 10**6)), "label 1000000 in only 48 examples"
    ),
    "pfllib label 2^31": (lambda root: pfllib(root, y=np.full(12, 2**31 - 1)), "1.npz has the"),
    # Images, and files that never end.
    "image pipe": (pipe(images, "cat/9.png"), "9.png is not a regular file"),
    "npz pipe": (pipe(npz, "f.npz"), "f.npz cannot be read \\(it is not a regular file\\)"),
    "pfllib pipe": (pipe(pfllib, "train/1.npz"), "1.npz cannot be read \\(it is not a regular"),
    "json pipe": (pipe(leaf, "all_data/b.json"), "b.json cannot be read \\(it is not a regular"),
    "config pipe": (pipe(pfllib, "config.json"), "config.json cannot be read"),
    "store pipe": (pipe(store, "inputs.npy"), "inputs.npy cannot be read"),
    "listed pipe": (pipe(iwildcam, "train/a1.png"), "a1.png cannot be read"),
    "image heic": (no_image("a.heic"), "a.heic is an image of an unsupported format"),
    "image svg": (no_image("a.svg"), "a.svg is an image of an unsupported format"),
    "image eps": (no_image("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n"), "a.png is truncated, damaged"),
    "image floats": (no_image("a.tif", grey(np.float32, 0.5)), "which do not define white"),
    "image of 32 bits": (no_image("a.tif", grey(np.int32, 70_000)), "do not define white"),
    "part beside class": (with_file(images, "train/cat/1.png", png(draw(4, 4, 3))), "beside"),
}  # fmt: skip


@needs_alarm
@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_files_give_a_one_line_error(tmp_path, hostile):
    make, sentence = HOSTILE[hostile]
    found, message = outcome(tmp_path, make(tmp_path))
    assert found == "refused", message
    assert re.search(sentence, message) and "\n" not in message


FILES_A_SET = 60


@needs_alarm
@pytest.mark.parametrize("valid", VALID, ids=lambda valid: valid.__name__)
def test_damage_is_refused_or_harmless(tmp_path, valid):
    """Bits flipped and ends cut off, always the same: none is a traceback, a hang or wrong."""
    settings = valid(tmp_path)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    whole = {path: path.read_bytes() for path in files}
    rng = np.random.default_rng(zlib.crc32(valid.__name__.encode()))
    counts, faults = collections.Counter(), []
    for attempt in range(FILES_A_SET):
        path = files[rng.integers(len(files))]
        content = bytearray(whole[path])
        if attempt % 3 == 0:
            del content[rng.integers(len(content)) :]
        else:
            # Headers decide most, so that every other flip is among the first bytes.
            reach = len(content) if attempt % 3 == 1 else min(len(content), 160)
            for _ in range(rng.integers(1, 4)):
                content[rng.integers(reach)] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        found, message = outcome(tmp_path, settings)
        counts[found] += 1
        if found not in ("refused", "loaded"):
            faults.append((attempt, path.name, found, message))
        path.write_bytes(whole[path])
    assert not faults, faults
    assert counts["refused"] > 0 and counts.total() == FILES_A_SET
