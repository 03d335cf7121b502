"""Data sets from tables: pandas frames, CSV, Parquet, and directories of Hugging Face."""

import io
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from pfljax import data
from pfljax.errors import UserError

ROWS = 24
FRAME = pd.DataFrame(
    {
        "age": np.arange(ROWS),
        "height": np.linspace(1.5, 2.0, ROWS),
        "smokes": ["no", "yes"] * (ROWS // 2),
        "clinic": np.repeat(["north", "south", "west"], ROWS // 3),
    }
)
COLUMNS = {"target": "smokes", "client": "clinic"}


def same(one, other):
    """Whether two data sets hold the same examples, splits and names."""
    np.testing.assert_array_equal(one.inputs, other.inputs)
    np.testing.assert_array_equal(one.targets, other.targets)
    np.testing.assert_array_equal(one.test.sizes, other.test.sizes)
    return (one.class_names, one.client_names) == (other.class_names, other.client_names)


def test_a_frame_is_its_arrays():
    made = data.from_frame(FRAME, **COLUMNS)
    arrays = data.from_arrays(
        FRAME[["age", "height"]].to_numpy(np.float32), FRAME.smokes.tolist(), FRAME.clinic.tolist()
    )
    assert same(made, arrays)
    assert made.inputs.dtype == np.float32
    assert made.client_names == ("north", "south", "west")
    assert np.all(made.mean != 0)  # standardized in the program


def test_files_are_the_frame(tmp_path):
    made = data.from_frame(FRAME, **COLUMNS)
    FRAME.to_csv(tmp_path / "a.csv", index=False)
    FRAME.to_csv(tmp_path / "a.csv.gz", index=False)
    FRAME.to_parquet(tmp_path / "a.parquet")
    (tmp_path / "parts").mkdir()
    FRAME[:10].to_parquet(tmp_path / "parts" / "0.parquet")
    FRAME[10:].to_parquet(tmp_path / "parts" / "1.parquet")
    for found in (
        data.from_csv(tmp_path / "a.csv", **COLUMNS),
        data.from_csv(tmp_path / "a.csv.gz", **COLUMNS),
        data.from_parquet(tmp_path / "a.parquet", **COLUMNS),
        data.from_parquet(tmp_path / "parts", **COLUMNS),
    ):
        assert same(found, made)
    assert data.from_csv(tmp_path / "a.csv", **COLUMNS).name == "a"


def test_columns_of_inputs_can_be_chosen():
    assert data.from_frame(FRAME, inputs="height", **COLUMNS).inputs.shape == (ROWS, 1)
    parts = data.from_frame(FRAME, inputs={"a": "age", "both": ["age", "height"]}, **COLUMNS)
    assert {name: array.shape for name, array in parts.inputs.items()} == {
        "a": (ROWS, 1),
        "both": (ROWS, 2),
    }


def test_ids_and_arrays_as_cells():
    frame = FRAME.assign(
        item=np.arange(ROWS) + 2**25, image=[np.ones((2, 3)) * k for k in range(ROWS)]
    )
    ids = data.from_frame(frame, inputs="item", vocabulary=2**26, **COLUMNS)
    assert np.array_equal(np.sort(ids.inputs[:, 0]), frame["item"])
    assert data.from_frame(frame, inputs="image", **COLUMNS).inputs.shape == (ROWS, 2, 3)


def test_a_regression():
    made = data.from_frame(FRAME, target="height", client="clinic", inputs="age", task="regression")
    assert made.task == "regression"
    assert made.target_mean == pytest.approx(FRAME.height.mean())


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: f.drop(columns="smokes"), "'smokes'"),
        (lambda f: f.assign(age=f.age.where(f.age != 3)), "1 missing values in the column 'age'"),
        (lambda f: f.assign(clinic=f.clinic.where(f.age != 3)), "the first in row 3"),
        (lambda f: f.assign(color="red"), "column 'color' that is not numeric"),
        (lambda f: f.assign(id=f.age + 2**24), "float32 rounds"),
        (lambda f: pd.concat([f, f.age], axis=1), "two columns 'age'"),
        (lambda f: f[["smokes", "clinic"]], "no columns besides"),
        (lambda f: f.assign(height=np.inf), "inf"),
        (lambda f: f[:17], "single example of the client west"),
        (lambda f: f[:0], "inputs of shape"),
    ],
)
def test_tables_that_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        data.from_frame(change(FRAME), **COLUMNS)


def test_cells_of_different_shapes_are_refused():
    frame = FRAME.assign(image=[np.ones(k + 1) for k in range(ROWS)])
    with pytest.raises(UserError, match="different shapes in the column 'image'"):
        data.from_frame(frame, inputs="image", **COLUMNS)


@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff\xfe", b'a,b\n1,"2', b"smokes,clinic\n", b"PAR1"]
)
@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_damaged_files_name_themselves(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    load = data.from_csv if name.endswith("csv") else data.from_parquet
    with pytest.raises(UserError, match="x"):
        load(tmp_path / name, **COLUMNS)
    with pytest.raises(UserError, match="missing"):
        load(tmp_path / f"missing_{name}", **COLUMNS)


# Directories of Hugging Face, as `datasets` writes them.


def features(**extra):
    """The description of the columns in the metadata of a file."""
    kinds = {"x": {"dtype": "float32", "_type": "Value"}, **extra}
    return {"huggingface": json.dumps({"info": {"features": kinds}})}


def png(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 5), value, np.uint8)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def table(rows=ROWS, start=0):
    names = {"label": {"names": ["cat", "dog", "owl"], "_type": "ClassLabel"}}
    columns = {
        "x": np.arange(start, start + rows, dtype=np.float32),
        "image": [png(k) for k in range(start, start + rows)],
        "label": np.arange(rows) % 2,
        "user": np.repeat(["ann", "bob"], rows // 2),
    }
    return pa.table(columns).replace_schema_metadata(features(**names))


def write_arrow(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, content.schema) as stream:
        stream.write_table(content)


def saved(folder):
    write_arrow(folder / "data-00000-of-00002.arrow", table())
    write_arrow(folder / "data-00001-of-00002.arrow", table(start=ROWS))
    (folder / "state.json").write_text("{}")


def saved_dict(folder):
    saved(folder / "train")
    write_arrow(folder / "test" / "data-00000-of-00001.arrow", table())
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')


def repository(folder):
    (folder / "data").mkdir(parents=True)
    for part in range(2):
        name = f"train-0000{part}-of-00002.parquet"
        pyarrow.parquet.write_table(table(start=part * ROWS), folder / "data" / name)
    pyarrow.parquet.write_table(table(), folder / "data" / "test-00000-of-00001.parquet")


@pytest.mark.parametrize("write", [saved, saved_dict, repository])
def test_directories_of_hugging_face(tmp_path, write):
    write(tmp_path / "birds")
    made = data.from_hugging_face(tmp_path / "birds", target="label", client="user", inputs="image")
    assert made.name == "birds"
    assert made.inputs.shape == (2 * ROWS, 4, 5, 1) and made.inputs.dtype == np.uint8
    assert sorted(set(made.inputs[:, 0, 0, 0].tolist())) == list(range(2 * ROWS))
    # A class without an example has its output all the same.
    assert made.class_names == ("cat", "dog", "owl") and made.num_classes == 3
    numbers = data.from_hugging_face(tmp_path / "birds", target="label", client="user", inputs="x")
    assert numbers.inputs.shape == (2 * ROWS, 1)
    if write is not saved:
        one = data.from_hugging_face(
            tmp_path / "birds", target="label", client="user", inputs="x", split=("train", "test")
        )
        assert len(one.targets) == 3 * ROWS
    with pytest.raises(UserError, match="'tset'"):
        data.from_hugging_face(tmp_path / "birds", target="label", client="user", split="tset")


def test_damaged_directories_name_themselves(tmp_path):
    columns = {"target": "label", "client": "user", "inputs": "image"}
    with pytest.raises(UserError, match="neither Arrow nor Parquet"):
        data.from_hugging_face(tmp_path, **columns)
    with pytest.raises(UserError, match="not a directory"):
        data.from_hugging_face(tmp_path / "none", **columns)
    write_arrow(tmp_path / "data-00000-of-00001.arrow", table())
    whole = (tmp_path / "data-00000-of-00001.arrow").read_bytes()
    (tmp_path / "data-00000-of-00001.arrow").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="data-00000-of-00001.arrow cannot be read"):
        data.from_hugging_face(tmp_path, **columns)
    images = table().set_column(1, "image", [[{"bytes": b"no image", "path": None}] * ROWS])
    write_arrow(tmp_path / "data-00000-of-00001.arrow", images)
    with pytest.raises(UserError, match="row 0 of the column 'image' that cannot be decoded"):
        data.from_hugging_face(tmp_path, **columns)
    images = table().set_column(1, "image", [[{"bytes": None, "path": "/etc/passwd"}] * ROWS])
    write_arrow(tmp_path / "data-00000-of-00001.arrow", images)
    with pytest.raises(UserError, match="does not contain its image"):
        data.from_hugging_face(tmp_path, **columns)
