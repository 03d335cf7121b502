"""Image data sets with labels in a separate file."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pfljax.data.examples import Examples
from pfljax.data.sources import files
from pfljax.data.sources.image_files import Listing, class_tree, load_listing
from pfljax.errors import UserError


def load_flowers102(data_dir: str = "", *, side: int = 64) -> Examples:
    """Returns the 8,189 photographs of Oxford Flowers 102.

    Args:
      data_dir: A directory with `imagelabels.mat` and the directory `jpg`, or with a directory
        `flowers-102`, `102flowers` or `flowers102` of them.
      side: The side length to which all images are resized.

    Returns:
      Examples with inputs `[8189, side, side, 3]` uint8 in 102 classes.

    Raises:
      UserError: The files are missing or damaged.
    """
    name, folders = "flowers102", ("flowers-102", "102flowers", "flowers102")
    (path,) = _find(name, data_dir, folders, ["imagelabels.mat"])
    labels = files.labels_below(
        path, files.numbers(path, files.read_matlab(path, "labels")[0], "labels").ravel() - 1.0, 102
    )
    images = [
        path.parent / "jpg" / f"image_{number:05}.jpg" for number in range(1, len(labels) + 1)
    ]
    return load_listing(name, Listing(images, labels.tolist(), 102), side)


def load_stanford_cars(data_dir: str = "", *, side: int = 64) -> Examples:
    """Returns the 8,144 training and 8,041 test photographs of Stanford Cars in 196 classes.

    Args:
      data_dir: A directory with `cars_train`, `cars_test`, `devkit/cars_train_annos.mat` and
        `cars_test_annos_withlabels.mat`, or with a directory `stanford_cars` of them.
      side: The side length to which all images are resized.

    Returns:
      Examples with inputs `[16185, side, side, 3]` uint8.

    Raises:
      UserError: The files are missing or damaged.
    """
    name, folders = "stanford_cars", ("stanford_cars", "stanford-cars")
    needed = ["devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"]
    train, test = _find(name, data_dir, folders, needed)
    paths, labels = [], []
    for part, path in (("cars_train", train), ("cars_test", test)):
        table = files.read_matlab(path, "annotations")[0].ravel()
        try:
            paths += [test.parent / part / str(row["fname"].item()) for row in table]
            classes = np.array([int(row["class"].item()) - 1 for row in table])
        except Exception as error:  # Other tables fail in many ways.
            raise UserError(
                f"{path} has no annotations with fname and class: {files.FETCH_AGAIN}."
            ) from error
        labels += files.labels_below(path, classes, 196).tolist()
    return load_listing(name, Listing(paths, labels, 196), side)


def load_gtsrb(data_dir: str = "", *, side: int = 32) -> Examples:
    """Returns the training and test images of the German traffic signs in 43 classes.

    Args:
      data_dir: A directory with `Final_Training/Images`, `Final_Test/Images` and
        `GT-final_test.csv` (in `Final_Test/Images` too), or with a directory `GTSRB` or `gtsrb` of
        them.
      side: The side length to which all images are resized.

    Returns:
      Examples with inputs `[51839, side, side, 3]` uint8.

    Raises:
      UserError: The files are missing or damaged.
    """
    searched = files.directories(data_dir, ("GTSRB", "gtsrb"))
    root = next((root for root in searched if (root / "Final_Training").is_dir()), None)
    if root is None:
        raise files.absent("gtsrb", searched, "put Final_Training and Final_Test there")
    tree = class_tree([root / "Final_Training" / "Images"])
    images = root / "Final_Test" / "Images"
    (path,) = files.find([root, images], ["GT-final_test.csv"]) or [images / "GT-final_test.csv"]
    rows = _rows(path, ["Filename", "ClassId"], delimiter=";")
    labels = files.labels_below(path, _whole(path, rows, "ClassId"), 43)
    paths = tree.paths + [images / row["Filename"] for row in rows]
    return load_listing("gtsrb", Listing(paths, tree.labels + labels.tolist(), 43), side)


def load_covidx(data_dir: str = "", *, side: int = 64) -> Examples:
    """Returns COVIDx's chest X-rays; class 1 is positive.

    Args:
      data_dir: A directory with `train.txt`, `test.txt` and the directories `train` and `test`, or
        with a directory `covidx` or `COVIDx` of them; a line consists of a patient, a file,
        `positive` or `negative`, and the source.
      side: The side length to which all images are resized.

    Returns:
      Examples with inputs `[n, side, side, 3]` uint8 in 2 classes of unequal sizes.

    Raises:
      UserError: The files are missing or damaged.
    """
    names = {"negative": 0, "positive": 1}
    paths, labels = [], []
    for path in _find("covidx", data_dir, ("covidx", "COVIDx"), ["train.txt", "test.txt"]):
        for line in files.read_text(path).splitlines():
            fields = line.rsplit(maxsplit=3)
            if not fields:
                continue
            if len(fields) != 4 or fields[2] not in names:
                raise UserError(
                    f"{path} has the line {line[:60]!r} instead of a patient, a file, positive or "
                    f"negative and a source: {files.FETCH_AGAIN}."
                )
            paths.append(path.parent / path.stem / fields[1])
            labels.append(names[fields[2]])
    return load_listing("covidx", Listing(paths, labels, 2), side)


def load_camelyon17(data_dir: str = "", *, side: int = 96) -> Examples:
    """Returns WILDS' patches of lymph nodes, owned by five hospitals; class 1 is a tumor.

    Args:
      data_dir: A directory with `metadata.csv` and `patches`, or with a directory `camelyon17_v1.0`
        of them.
      side: The side length of the patches, 96 as distributed; all 455,954 then take 12.6 GB of
        memory.

    Returns:
      Examples with inputs `[n, side, side, 3]` uint8.

    Raises:
      UserError: The files are missing or damaged.

    References:
      Koh et al., "WILDS: A Benchmark of in-the-Wild Distribution Shifts", 2021,
      https://arxiv.org/abs/2012.07421.
    """
    folders = ("camelyon17_v1.0", "camelyon17")
    (path,) = _find("camelyon17", data_dir, folders, ["metadata.csv"])
    columns = ["patient", "node", "x_coord", "y_coord", "tumor", "center"]
    rows = _rows(path, columns)
    labels = files.labels_below(path, _whole(path, rows, "tumor"), 2)
    paths = []
    for row in rows:
        node = f"patient_{row['patient'].strip().zfill(3)}_node_{row['node']}"
        patch = f"patch_{node}_x_{row['x_coord']}_y_{row['y_coord']}.png"
        paths.append(path.parent / "patches" / node / patch)
    owners = files.owners(path, _whole(path, rows, "center")).tolist()
    return load_listing("camelyon17", Listing(paths, labels.tolist(), 2, owners), side)


def load_iwildcam(data_dir: str = "", *, side: int = 64) -> Examples:
    """Returns WILDS' photographs of animals, owned by the camera traps that took them.

    Args:
      data_dir: A directory with `metadata.csv` and `train`, or with a directory `iwildcam_v2.0` of
        them.
      side: The side length to which all images are resized.

    Returns:
      Examples with inputs `[n, side, side, 3]` uint8 in up to 182 classes. `min_size` drops traps
      with few photographs.

    Raises:
      UserError: The files are missing or damaged.

    References:
      Koh et al., "WILDS: A Benchmark of in-the-Wild Distribution Shifts", 2021,
      https://arxiv.org/abs/2012.07421.
    """
    folders = ("iwildcam_v2.0", "iwildcam")
    (path,) = _find("iwildcam", data_dir, folders, ["metadata.csv"])
    rows = _rows(path, ["filename", "y", "location_remapped"])
    labels = files.labels_below(path, _whole(path, rows, "y"), 182)
    paths = [path.parent / "train" / row["filename"] for row in rows]
    owners = files.owners(path, _whole(path, rows, "location_remapped")).tolist()
    classes = int(labels.max()) + 1
    return load_listing("iwildcam", Listing(paths, labels.tolist(), classes, owners), side)


def _find(name: str, data_dir: str, folders: Sequence[str], needed: list[str]) -> list[Path]:
    searched = files.directories(data_dir, folders)
    paths = files.find(searched, needed)
    if paths is None:
        raise files.absent(name, searched, f"put {', '.join(needed)} and its images there")
    return paths


def _rows(path: Path, columns: list[str], delimiter: str = ",") -> list[dict[str, str]]:
    """Returns the rows of a csv with a header, after checking its columns."""
    text = files.read_text(path)
    try:
        reader = csv.DictReader(io.StringIO(text), delimiter=delimiter)
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        rows = list(reader)
    except csv.Error as error:
        raise UserError(f"{path} is not a table ({error}): {files.FETCH_AGAIN}.") from error
    if missing or not rows or any(row[column] is None for row in rows for column in columns):
        raise UserError(
            f"{path} is truncated or not a table with the columns {', '.join(columns)}: "
            f"{files.FETCH_AGAIN}."
        )
    return rows


def _whole(path: Path, rows: list[dict[str, str]], column: str) -> np.ndarray:
    try:
        return np.array([files.whole_number(row[column]) for row in rows])
    except ValueError as error:
        raise UserError(
            f"{path} has a {column} that is not a whole number: {files.FETCH_AGAIN}."
        ) from error
