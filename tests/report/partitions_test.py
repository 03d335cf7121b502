"""The table and the pictures of a partition, few clients and many."""

import numpy as np
import pytest
import rich.console
from matplotlib import image

from pfljax import data
from pfljax.data import statistics
from pfljax.report import partitions
from pfljax.training.study.config import default_config


def found_in(num_clients, num_classes, examples=10_000, partition="dirichlet"):
    labels = np.random.default_rng(0).integers(0, num_classes, examples).astype(np.int32)
    pool = data.Examples("pool", np.zeros((examples, 1), np.uint8), labels, num_classes)
    settings = dict(alpha=0.1, min_size=2, size_exponent=2.0)
    clients = data.make_partition(partition, labels, num_clients, 0, **settings)
    return statistics.measure(
        data.assemble(
            pool, clients, test_fraction=0.25, validation_fraction=0.1,
            unseen_fraction=0.1 if num_clients > 1 else 0.0, seed=0,
        )
    )  # fmt: skip


def printed(what):
    console = rich.console.Console(width=100, record=True, file=open("/dev/null", "w"))
    with console.file:
        console.print(what)
    return console.export_text()


def test_the_table():
    found = found_in(20, 10)
    text = printed(partitions.table(found))
    rows = {line[:28].strip(): line[28:].split() for line in text.splitlines()}
    totals = found.totals
    expected = [totals.min(), np.median(totals), totals.mean(), totals.max()]
    numbers = [float(cell.replace(",", "")) for cell in rows["all examples"]]
    np.testing.assert_allclose(numbers, [*expected, 10_000], rtol=1e-3)
    assert rows["training examples"][-1] == f"{found.sizes['train'].sum():,}"
    assert rows["classes"][-1] == "10"
    assert rows["distance to the pool"][0] == f"{found.to_pool.min():.3f}"
    assert rows["distance to another client"][2] == f"{found.mean_distance:.3f}"


def test_the_imbalance():
    found = found_in(20, 10)
    text = partitions.imbalance(found)
    classes = found.counts.sum(axis=0)
    assert f"{found.totals.max() / found.totals.min():.3g} times the examples of the" in text
    assert f"the largest class {classes.max() / classes.min():.3g} times" in text
    one = found_in(1, 10)
    assert "The largest client has 1 times" in partitions.imbalance(one)
    assert "distance to another client" not in printed(partitions.table(one))


def is_blue(pixels):
    return (pixels[..., 2] > 0.55) & (pixels[..., 0] < 0.45)


@pytest.mark.parametrize(
    "num_clients, num_classes, partition",
    [(1, 2, "iid"), (20, 10, "dirichlet"), (500, 10, "dirichlet"), (500, 100, "iid"),
     (1500, 3, "quantity_power_law")],
)  # fmt: skip
def test_pictures(tmp_path, num_clients, num_classes, partition):
    found = found_in(num_clients, num_classes, partition=partition) if num_clients > 1 else None
    if found is None:
        counts = np.array([[30, 70]])
        sizes = {name: np.array([size]) for name, size in (("train", 60), ("test", 40))}
        found = statistics.Statistics(sizes, counts, np.array([0]), np.zeros((1, 1)), np.zeros(1))
    names = partitions.draw(tmp_path / "new", found, "A title", num_clients // 10)
    assert tuple(names) == partitions.PICTURES
    for name in names:
        pixels = image.imread(tmp_path / "new" / name)
        assert 400 < pixels.shape[0] <= 2400 and 900 < pixels.shape[1] <= 2000
    bubbles = image.imread(tmp_path / "new" / partitions.CLASSES)
    assert is_blue(bubbles).sum() > 500
    orange = (bubbles[..., 0] > 0.9) & (bubbles[..., 2] < 0.4)
    assert (orange.sum() > 50) == (num_clients >= 10)


def test_targets_that_are_no_classes_have_one_picture(tmp_path):
    found = found_in(20, 10)
    found = found._replace(
        counts=np.zeros((20, 0), int), compared=np.zeros(0, int), to_pool=np.zeros(0)
    )
    assert partitions.draw(tmp_path, found, "A title", 0) == [partitions.SIZES]
    assert [file.name for file in tmp_path.iterdir()] == [partitions.SIZES]
    assert "classes" not in printed(partitions.table(found))
    assert "class" not in partitions.imbalance(found)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, "Dirichlet(0.1)"),
        ({"partition": "iid"}, "iid"),
        ({"partition": "pathological"}, "2 classes each"),
        ({"partition": "shards"}, "shards (shards_per_client=2)"),
        ({"partition": "pathological", "balanced": False}, "2 classes each, unequal fractions"),
        ({"partition": "groups"}, "4 groups by class"),
        (
            {"partition": "dirichlet_by_client", "min_size": 7},
            "dirichlet_by_client (alpha=0.1, min_size=7)",
        ),
        ({"partition": "natural"}, "natural"),
        ({"name": "npz"}, "natural"),
        ({"partition": "iid", "feature_shift": "rotation"}, "iid, rotation in 4 groups"),
        (
            {"feature_shift": "noise", "concept_shift": "permutation", "num_groups": 2},
            "Dirichlet(0.1), noise in 2 groups, permutation in 2 groups",
        ),
    ],
)  # fmt: skip
def test_partitions_have_names(changes, words):
    config = default_config()
    config.data.update(changes)
    assert partitions.name_partition(config.data) == words
