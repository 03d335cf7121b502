"""Every study in configs/ is one that runs: known keys, a data set, a model that takes it."""

import importlib.util
import os
import pathlib

import jax
import pytest

from pfljax import data
from pfljax.training.study import architectures, config_checks, config_runs, experiment

ROOT = pathlib.Path(__file__).parents[2]
# Data sets that need no directory.
GENERATED = ("digits", "simulated_preferences")
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def study(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, module.get_config()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_documents_its_command(name):
    module, config = study(name)
    for each in config_runs.scenarios(config).values():
        config_checks.check(each)
    assert f"--config=configs/{name}.py" in module.__doc__
    assert config.data.name in data.DATASETS
    assert ("--config.data.dir=" in module.__doc__) == (config.data.name not in GENERATED)


@pytest.mark.parametrize("name", CONFIGS)
def test_its_model_takes_its_data(name):
    _, config = study(name)
    root = os.environ.get("PFLJAX_DATA", "")
    if not root and config.data.name not in GENERATED:
        pytest.skip("PFLJAX_DATA is not set")
    config.data.dir = root
    dataset = experiment.build_dataset(config)
    assert config.cohort.size <= dataset.num_participants
    for make, frozen in architectures.build_tasks(config, dataset):
        shapes = jax.eval_shape(make(frozen).init, jax.eval_shape(jax.random.key, 0))
        assert jax.tree.leaves(shapes)
