"""Folders and lists of image files, and digits in MATLAB files, as they are distributed."""

import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds
from PIL import Image

from pfljax.data import sources
from pfljax.data.sources import image_trees, pamap2
from pfljax.errors import UserError

LOAD = sources.SOURCES


def paint(path, colour, size=(40, 30)):
    """Writes an image of one colour, which tells later which one it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, 0, 255 - colour)).save(path)


def colours(pool):
    """The red of each image's middle, undone from JPEG's rounding to tens."""
    middle = pool.inputs.shape[1] // 2
    assert pool.inputs.dtype == np.uint8 and pool.inputs.shape[3] == 3
    return np.round(pool.inputs[:, middle, middle, 0] / 10).astype(int).tolist()


def refusal(name, folder, **options):
    with pytest.raises(UserError) as refused:
        LOAD[name](str(folder), **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_folder_per_class(tmp_path):
    paint(tmp_path / "dog" / "b.jpg", 20)
    paint(tmp_path / "dog" / "a.PNG", 10, (7, 9))
    paint(tmp_path / "cat" / "deeper" / "c.ppm", 30)
    (tmp_path / "cat" / "notes.txt").write_text("")
    (tmp_path / "readme.txt").write_text("")
    pool = LOAD["image_classes"](str(tmp_path), side=16)
    assert colours(pool) == [3, 1, 2] and pool.targets.tolist() == [0, 1, 1]
    assert (pool.inputs.shape, pool.num_classes, pool.owners) == ((3, 16, 16, 3), 2, None)
    paint(tmp_path / "cat" / "z.png", 0)
    (tmp_path / "cat" / "z.png").write_bytes((tmp_path / "cat" / "z.png").read_bytes()[:50])
    assert f"{tmp_path / 'cat' / 'z.png'} is truncated" in refusal("image_classes", tmp_path)
    assert "side" in refusal("image_classes", tmp_path, side=0)


def test_a_folder_per_domain(tmp_path):
    paint(tmp_path / "photo" / "dog" / "1.png", 10)
    paint(tmp_path / "art" / "cat" / "1.png", 20)
    paint(tmp_path / "art" / "dog" / "1.png", 30)
    pool = LOAD["image_domains"](str(tmp_path), side=8)
    assert colours(pool) == [2, 3, 1]
    assert pool.targets.tolist() == [0, 1, 1] and pool.owners.tolist() == [0, 0, 1]


@pytest.mark.parametrize("name", ["image_classes", "image_domains"])
def test_a_user_directory_must_contain_images(tmp_path, name):
    assert "set data.dir to it" in refusal(name, "")
    assert "set data.dir to it" in refusal(name, tmp_path / "nowhere")
    assert "has no CLASS/IMAGE" in refusal(name, tmp_path)


@pytest.mark.parametrize(
    "name, folder, parts, classes",
    [
        ("tiny_imagenet", "tiny-imagenet-200", ["train"], 200),
        ("country211", "country211", ["train", "valid", "test"], 211),
        ("kvasir", "kvasir-dataset-v2", [""], 8),
    ],
)
def test_directories_of_known_data_sets(tmp_path, name, folder, parts, classes):
    message = refusal(name, tmp_path)
    assert "there, with the directory" in message and str(tmp_path) in message
    for number, part in enumerate(parts):
        for label in range(classes):
            inner = "images" if name == "tiny_imagenet" else ""
            known = label == classes - 1 and name == "kvasir"
            image = tmp_path / folder / part / ("polyps" if known else f"c{label:03}")
            image = image / inner / "1.png"
            paint(image, 10 * number, (4, 4))
    pool = LOAD[name](str(tmp_path), side=4)
    assert pool.targets.tolist() == list(range(classes)) * len(parts)
    assert colours(pool) == np.repeat(np.arange(len(parts)), classes).tolist()
    paint(tmp_path / folder / parts[0] / "zzz" / "1.png", 0)
    assert f"{classes + 1} classes instead of {classes}" in refusal(name, tmp_path)


def test_parts_must_be_complete(tmp_path):
    paint(tmp_path / "train" / "AD" / "1.jpg", 0)
    assert "lacks the folders valid, test" in refusal("country211", tmp_path)
    paint(tmp_path / "clipart" / "bee" / "1.jpg", 0)
    assert "lacks the directories infograph, painting" in refusal("domainnet", tmp_path)


def test_domainnet(tmp_path, monkeypatch):
    domains = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
    for number, domain in enumerate(domains):
        paint(tmp_path / "domainnet" / domain / "bee" / "1.png", 10 * number)
        paint(tmp_path / "domainnet" / domain / "zebra" / "1.png", 10 * number)
    assert "2 classes instead of 345" in refusal("domainnet", tmp_path)
    monkeypatch.setattr(image_trees, "_of_classes", lambda listing, root, classes: listing)
    pool = LOAD["domainnet"](str(tmp_path), side=8)
    assert pool.owners.tolist() == colours(pool) == np.repeat(np.arange(6), 2).tolist()
    assert pool.targets.tolist() == [0, 1] * 6


def test_flowers102(tmp_path):
    for number in (1, 2, 3):
        paint(tmp_path / "102flowers" / "jpg" / f"image_{number:05}.jpg", 10 * number)
    labels = np.array([[77, 1, 102]], np.uint8)
    scipy.io.savemat(tmp_path / "102flowers" / "imagelabels.mat", {"labels": labels})
    pool = LOAD["flowers102"](str(tmp_path))
    assert pool.targets.tolist() == [76, 0, 101] and colours(pool) == [1, 2, 3]
    (tmp_path / "102flowers" / "jpg" / "image_00002.jpg").unlink()
    assert "image_00002.jpg is missing" in refusal("flowers102", tmp_path)
    scipy.io.savemat(tmp_path / "102flowers" / "imagelabels.mat", {"labels": labels + 1})
    assert "label 102" in refusal("flowers102", tmp_path)
    (tmp_path / "102flowers" / "imagelabels.mat").write_bytes(b"MATLAB")
    assert "not a MATLAB file of labels" in refusal("flowers102", tmp_path)


def test_stanford_cars(tmp_path):
    form = [(name, "O") for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    (tmp_path / "devkit").mkdir()
    files = {"cars_train": "devkit/cars_train_annos", "cars_test": "cars_test_annos_withlabels"}
    for number, (part, stem) in enumerate(files.items()):
        table = np.empty((1, 2), form)
        for row in (0, 1):
            name = f"{row + 1:05}.jpg"
            table[0, row] = (1, 1, 9, 9, np.uint8(1 + 195 * row), name)
            paint(tmp_path / part / name, 20 * number + 10 * row)
        scipy.io.savemat(tmp_path / f"{stem}.mat", {"annotations": table})
    pool = LOAD["stanford_cars"](str(tmp_path))
    assert pool.targets.tolist() == [0, 195, 0, 195] and colours(pool) == [0, 1, 2, 3]
    scipy.io.savemat(tmp_path / f"{stem}.mat", {"annotations": np.ones(3)})
    assert "no annotations with fname and class" in refusal("stanford_cars", tmp_path)


def test_gtsrb(tmp_path):
    root = tmp_path / "GTSRB"
    for label in range(43):
        folder = root / "Final_Training" / "Images" / f"{label:05}"
        paint(folder / "00000_00000.ppm", 10)
        (folder / f"GT-{label:05}.csv").write_text("Filename;ClassId\n")
    for number in (0, 1):
        paint(root / "Final_Test" / "Images" / f"{number:05}.ppm", 20)
    table = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
    table += "00000.ppm;53;54;6;5;48;49;16\n00001.ppm;42;45;5;5;36;40;1\n"
    (root / "GT-final_test.csv").write_text(table)
    pool = LOAD["gtsrb"](str(tmp_path))
    assert pool.targets.tolist() == [*range(43), 16, 1] and colours(pool) == [1] * 43 + [2] * 2
    assert pool.inputs.shape[1:] == (32, 32, 3)
    (root / "GT-final_test.csv").write_text(table.replace("ClassId", "Class"))
    assert "not a table with the columns Filename, ClassId" in refusal("gtsrb", tmp_path)
    (root / "GT-final_test.csv").write_text(table + "00002.ppm;1;1;1;1;1;1;sixteen\n")
    assert "ClassId that is not a whole number" in refusal("gtsrb", tmp_path)
    (root / "GT-final_test.csv").unlink()
    assert "GT-final_test.csv cannot be read" in refusal("gtsrb", tmp_path)


def test_covidx(tmp_path):
    paint(tmp_path / "covidx" / "train" / "a.png", 10)
    paint(tmp_path / "covidx" / "train" / "b.jpg", 20)
    paint(tmp_path / "covidx" / "test" / "a.png", 30)
    (tmp_path / "covidx" / "train.txt").write_text(
        "379 a.png positive cohen\npatient 7 b.jpg negative rsna\n\n"
    )
    (tmp_path / "covidx" / "test.txt").write_text("3 a.png negative sirm\n")
    pool = LOAD["covidx"](str(tmp_path))
    assert pool.targets.tolist() == [1, 0, 0] and colours(pool) == [1, 2, 3]
    (tmp_path / "covidx" / "test.txt").write_text("3 a.png normal sirm\n")
    assert "the line '3 a.png normal sirm'" in refusal("covidx", tmp_path)


def test_camelyon17(tmp_path):
    root = tmp_path / "camelyon17_v1.0"
    table = ",patient,node,x_coord,y_coord,tumor,slide,center,split\n"
    table += "0,004,4,3328,21792,1,0,0,0\n1,99,2,64,32,0,49,4,0\n"
    for place, corner, colour in (
        ("004_node_4", "3328_y_21792", 10),
        ("099_node_2", "64_y_32", 20),
    ):
        name = f"patch_patient_{place}_x_{corner}.png"
        paint(root / "patches" / f"patient_{place}" / name, colour, (96, 96))
    (root / "metadata.csv").write_text(table)
    pool = LOAD["camelyon17"](str(tmp_path))
    assert pool.inputs.shape == (2, 96, 96, 3) and colours(pool) == [1, 2]
    assert pool.targets.tolist() == [1, 0] and pool.owners.tolist() == [0, 4]
    (root / "metadata.csv").write_text(table[:-20])
    assert "truncated or not a table" in refusal("camelyon17", tmp_path)


def test_iwildcam(tmp_path):
    root = tmp_path / "iwildcam_v2.0"
    paint(root / "train" / "a.jpg", 10, (64, 48))
    paint(root / "train" / "b.jpg", 20, (64, 48))
    header = "split,location_remapped,location,sequence_remapped,seq_id,filename,y\n"
    (root / "metadata.csv").write_text(header + "train,9,1,0,x,a.jpg,0\ntest,12,2,0,y,b.jpg,24\n")
    pool = LOAD["iwildcam"](str(tmp_path), side=32)
    assert pool.targets.tolist() == [0, 24] and pool.owners.tolist() == [9, 12]
    assert colours(pool) == [1, 2] and pool.num_classes == 25


def street_numbers(labels):
    values = np.arange(len(labels), dtype=np.uint8)
    images = np.broadcast_to(10 * values, (32, 32, 3, len(labels)))
    return {"X": images, "y": np.array(labels, np.uint8)[:, None]}


def test_svhn(tmp_path):
    scipy.io.savemat(tmp_path / "train_32x32.mat", street_numbers([10, 1]))
    scipy.io.savemat(tmp_path / "test_32x32.mat", street_numbers([9]))
    pool = LOAD["svhn"](str(tmp_path))
    assert pool.targets.tolist() == [0, 1, 9] and colours(pool) == [0, 1, 0]
    scipy.io.savemat(tmp_path / "test_32x32.mat", {"X": np.zeros((32, 32, 3, 2)), "y": [[1]]})
    assert "not the MATLAB file of that name" in refusal("svhn", tmp_path)
    with tfds.testing.mock_data(num_examples=3):
        pool = LOAD["svhn"](str(tmp_path / "nowhere"))
    assert pool.inputs.shape == (6, 32, 32, 3) and pool.targets.dtype == np.int32


def test_digit5(tmp_path):
    def grey(side, *values):
        return np.array(values, np.uint8)[:, None, None] * np.ones((side, side), np.uint8)

    one_hot = np.eye(10)
    mnist = {"train_32": grey(32, 10), "test_32": grey(32, 20)}
    mnist |= {"label_train": one_hot[[3]], "label_test": one_hot[[0]]}
    scipy.io.savemat(tmp_path / "mnist_data.mat", mnist)
    coloured = np.repeat(grey(28, 30)[..., None], 3, axis=3)
    mnist_m = {"train": coloured, "test": coloured}
    mnist_m |= {"label_train": one_hot[[3]], "label_test": one_hot[[4]]}
    scipy.io.savemat(tmp_path / "mnistm_with_label.mat", mnist_m)
    scipy.io.savemat(tmp_path / "svhn_train_32x32.mat", street_numbers([10]))
    scipy.io.savemat(tmp_path / "svhn_test_32x32.mat", street_numbers([2]))
    synthetic = np.repeat(grey(32, 40)[..., None], 3, axis=3)
    marks = np.array([[7]], np.uint8)
    syn = {"train_data": synthetic, "test_data": synthetic}
    scipy.io.savemat(
        tmp_path / "syn_number.mat", syn | {"train_label": marks, "test_label": marks + 1}
    )
    usps = np.empty((2, 2), object)
    for part in (0, 1):
        usps[part, 0], usps[part, 1] = grey(28, 50)[:, None] / 255, np.array([[part]])
    scipy.io.savemat(tmp_path / "usps_28x28.mat", {"dataset": usps})
    pool = LOAD["digit5"](str(tmp_path))
    assert pool.inputs.shape == (10, 32, 32, 3)
    assert colours(pool) == [1, 2, 3, 3, 0, 0, 4, 4, 5, 5]
    assert pool.targets.tolist() == [3, 0, 3, 4, 0, 2, 7, 8, 0, 1]
    assert pool.owners.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert LOAD["digit5"](str(tmp_path), largest=1).targets.tolist() == [3, 3, 0, 7, 0]
    (tmp_path / "usps_28x28.mat").unlink()
    assert "lacks usps_28x28.mat" in refusal("digit5", tmp_path)


def test_pamap2(tmp_path):
    folder = tmp_path / "PAMAP2_Dataset" / "Protocol"
    folder.mkdir(parents=True)
    activities = [0, 0, 1, 1, 1, 1, 1, 1, 24, 24, 24, 24, 1, 1]
    for subject in range(101, 110):
        table = np.zeros((len(activities), 54))
        table[:, 0] = np.arange(len(activities)) / 100
        table[:, 1] = activities
        table[:, 4] = np.arange(len(activities))  # acceleration of the wrist along x
        table[3, 4] = table[5, 50] = np.nan
        table[:, 2] = np.nan  # the heart rate is measured more rarely
        np.savetxt(folder / f"subject{subject}.dat", table, "%g")
    pool = LOAD["pamap2"](str(tmp_path), length=4)
    # Windows of 4 every 2: two of the first activity, one of the second, none of the short one.
    assert pool.targets.tolist() == [0, 0, 11] * 9 and pool.inputs.shape == (27, 4, 27)
    assert pool.inputs[:3, :, 0].tolist() == [[2, 3, 4, 5], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert pool.owners.tolist() == np.repeat(np.arange(101, 110), 3).tolist()
    assert np.isfinite(pool.inputs).all() and pool.time_gap == 1
    assert len(pamap2.ACTIVITIES) == pool.num_classes == 12
    assert "no activity of 256 measurements" in refusal("pamap2", tmp_path)
    (folder / "subject104.dat").write_text("0.1 1 nan\n")
    assert "subject104.dat is truncated" in refusal("pamap2", tmp_path)
    (folder / "subject104.dat").unlink()
    assert "lacks subject104.dat" in refusal("pamap2", tmp_path)
