"""A run never writes over another one."""

import json
import os

import pytest

from pfljax.errors import UserError
from pfljax.training.run import workdir
from pfljax.training.study.config import default_config


def config(**changes):
    changed = default_config()
    changed.update_from_flattened_dict(changes)
    return changed


def test_a_run_of_an_earlier_version_has_the_keys_of_this_one(tmp_path):
    config = default_config()
    config.data.min_size = 7
    old = workdir.settings(config)
    old["data"]["least"] = old["data"].pop("min_size")
    del old["compute_dtype"], old["cohort"]["join"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    workdir.require_same(tmp_path, config)
    config.data.min_size = 8
    with pytest.raises(UserError, match="min_size is 8 here and 7 there"):
        workdir.require_same(tmp_path, config)


def test_claiming_writes_the_config(tmp_path):
    place = tmp_path / "a" / "b"
    workdir.claim(place, config(algorithm="ditto"), resume=False)
    written = json.loads((place / "config.json").read_text())
    assert written["algorithm"] == "ditto" and list(written["hparams"]) == ["ditto"]
    assert [file.name for file in place.iterdir()] == ["config.json"]


def test_a_run_that_never_saved_may_begin_again(tmp_path):
    workdir.claim(tmp_path, config(), resume=False)
    workdir.claim(tmp_path, config(), resume=False)


def test_a_run_with_checkpoints_resumes_only_on_request(tmp_path):
    workdir.claim(tmp_path, config(), resume=False)
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(UserError, match="add --resume"):
        workdir.claim(tmp_path, config(), resume=False)
    workdir.claim(tmp_path, config(), resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_another_config_is_refused(tmp_path, resume):
    workdir.claim(tmp_path, config(), resume=False)
    before = (tmp_path / "config.json").read_text()
    changes = {"client_optimizer.learning_rate": 0.5}
    with pytest.raises(
        UserError, match="client_optimizer.learning_rate is 0.5 here and 0.05 there"
    ):
        workdir.claim(tmp_path, config(**changes), resume=resume)
    assert (tmp_path / "config.json").read_text() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": 7},
        {"eval_every": 3},
        {"checkpoint_every": 3},
        {"engine.devices": 2},
        {"seeds": (5, 6)},
        {"algorithms": ("local",)},
        {"hparams.ditto.lam": 7.0},  # of another method
        {"learning_rates.ditto": 7.0},
    ],
)
def test_what_may_change_between_a_run_and_its_resumption(tmp_path, changes):
    workdir.claim(tmp_path, config(), resume=False)
    workdir.claim(tmp_path, config(**changes), resume=True)


def test_a_config_from_json_compares_with_a_new_one(tmp_path):
    """Tuples become lists on disk, and whole floats stay floats."""
    changes = {"model.name": "mlp", "client_optimizer.learning_rate": 1.0}
    one, two = config(**changes), config(**changes)
    one.model.widths = two.model.widths = (5, 6)
    workdir.claim(tmp_path, one, resume=False)
    workdir.claim(tmp_path, two, resume=True)


@pytest.mark.parametrize(
    "old, new, difference",
    [
        ({"a": 1}, {"a": 1}, None),
        ({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 2, "d": 4}}, "b.d is 4 here and 3"),
        ({"a": 1}, {}, "a is None here and 1 there"),
        ({}, {"a": "x"}, "a is 'x' here and None there"),
        ({"b": 2, "a": 1}, {"b": 3, "a": 2}, "a is 2"),
        ({"rounds": 1}, {"rounds": 2}, None),
        ({"data": {"rounds": 1}}, {"data": {"rounds": 2}}, "data.rounds is 2 here"),
        ({"a": {"b": 1}}, {"a": 1}, "a is 1 here and {'b': 1} there"),
    ],
)
def test_first_difference(old, new, difference):
    found = workdir.first_difference(old, new)
    assert found is None if difference is None else found.startswith(difference)


def test_a_config_cut_short(tmp_path):
    (tmp_path / "config.json").write_text('{"a": ')
    with pytest.raises(UserError, match="config.json is not valid JSON"):
        workdir.claim(tmp_path, config(), resume=False)


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written .*another --workdir"):
        workdir.claim(tmp_path / "file" / "inside", config(), resume=False)
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(UserError, match="cannot be written"):
            workdir.claim(tmp_path / "closed" / "inside", config(), resume=False)
