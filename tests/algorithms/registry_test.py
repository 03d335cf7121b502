"""The registry: one row for each method, imported when used, and refusals in the same words."""

import inspect
import re
import subprocess
import sys
import typing

import federation
import method_files
import pytest
import quadratics

from pfljax import core
from pfljax.algorithms import ALGORITHMS, Method, checked
from pfljax.algorithms.requirements import NEEDS
from pfljax.errors import UserError
from pfljax.training.study import experiment
from pfljax.training.study.config import default_config

# A task that lacks what methods need of a task.
LACKING = {
    "classes": lambda: federation.task()._replace(num_classes=0),
    "classes_or_numbers": lambda: federation.task()._replace(num_classes=0),
    "features": lambda: federation.task()._replace(num_features=0),
    "array_inputs": lambda: federation.task()._replace(input_shape=()),
    "output_losses": lambda: federation.task()._replace(output_losses=None),
    "head": lambda: federation.task()._replace(is_head=lambda path: False),
    "body": lambda: federation.task()._replace(is_head=lambda path: True),
    "linear_head": lambda: federation.task()._replace(num_features=7),
    "layers": lambda: federation.task()._replace(layers=()),
    "kernels": lambda: quadratics.quadratic(),
    "adapters": lambda: federation.task(),
    "class_features": lambda: federation.prompt_task(),
    "prompts": lambda: federation.task()._replace(
        class_features=lambda model: model["head"]["kernel"].T
    ),
    "normalization": lambda: federation.task(),
    "no_statistics": lambda: federation.task("mlp_bn"),
    "no_head_statistics": lambda: with_statistics_in_the_head(),
}
OF_A_RUN = {"full_participation", "server_data", "random_init"}


def with_statistics_in_the_head():
    task = federation.task("mlp_bn")
    return task._replace(is_head=lambda path: task.is_head(path) or task.is_statistic(path))


def fedhalf(task, local, *, share: float = 0.5):
    """A method outside the library."""
    return ALGORITHMS["fedavg"](task, local)


def test_importing_the_registry_imports_no_method():
    code = "import sys, pfljax.algorithms; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "pfljax.algorithms.registry" in loaded
    assert not loaded & {row.source for row in ALGORITHMS.values()}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_row_says_what_the_method_is(name):
    row = ALGORITHMS[name]
    factory, module = row.factory, sys.modules[row.factory.__module__]
    assert factory.__name__ == name and row.tags
    assert factory.__wrapped__, "decorate the factory with `checked`"
    years = [int(year) for year in re.findall(r'",\s+(\d{4}),', module.__doc__)]
    assert row.year == (years[0] if years else None)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_method_has_its_own_tests(name):
    """A closed form; and batch normalization, unless the method refuses it, as tested here."""
    tests = method_files.tests_of(name)
    assert any(test.startswith("test_closed_form") for test in tests)
    refuses = "no_statistics" in ALGORITHMS[name].needs
    assert refuses != any(test.startswith("test_batch_norm") for test in tests)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_functions_of_a_method_have_the_arguments_of_their_protocols(name):
    algorithm, protocols = federation.make(name), typing.get_type_hints(core.Algorithm)
    for verb, function in algorithm._asdict().items():
        if function is None or verb == "aggregators":
            continue
        protocol = (typing.get_args(protocols[verb]) or (protocols[verb],))[0]
        _, *wanted = inspect.signature(protocol.__call__).parameters
        found = list(inspect.signature(function).parameters)
        if verb == "client_update":  # What is received has the name of what the method sends.
            found[0] = wanted[0]
        assert found == wanted, f"{verb} of {name}"


def test_every_need_of_a_task_is_tested():
    assert set(LACKING) | OF_A_RUN == set(NEEDS)


@pytest.mark.parametrize(
    "name, need",
    [(name, need) for name, row in ALGORITHMS.items() for need in sorted(row.needs - OF_A_RUN)],
)
def test_a_task_that_lacks_a_need_is_refused_in_one_sentence(name, need):
    row, task = ALGORITHMS[name], LACKING[need]()
    sentence = f"{row.title} needs {NEEDS[need].noun}; {NEEDS[need].remedy}."
    for make in (row, row.factory):  # by the registry, and imported from the method's own module
        with pytest.raises(UserError) as refusal:
            make(task, federation.local_training())
        assert str(refusal.value) == sentence


def test_the_mentee_of_fedkd_has_the_same_needs():
    small = federation.task()._replace(num_features=0)
    with pytest.raises(UserError, match="^FedKD needs features"):
        federation.make("fedkd", mentee=small)


def test_a_method_of_ones_own_needs_all_clients(monkeypatch):
    row = Method(fedhalf, year=2030, needs=frozenset({"full_participation"}))
    monkeypatch.setitem(ALGORITHMS, "fedhalf", row)
    config = default_config()
    config.algorithm = "fedhalf"
    config.data.num_clients = 4
    dataset = experiment.build_dataset(config)
    assert config.hparams.fedhalf.share == 0.5
    assert experiment.build(config, dataset).plan.size == 4
    for key, value in (("size", 3), ("dropout", 0.5)):
        part = config.copy_and_resolve_references()
        part.cohort[key] = value
        with pytest.raises(UserError, match="fedhalf needs all clients in every round; set config"):
            experiment.build(part, dataset)


def test_the_needs_of_a_method_of_ones_own_are_checked_where_it_is_called(monkeypatch):
    own = checked(fedhalf)
    monkeypatch.setitem(ALGORITHMS, "fedhalf", Method(own, needs=frozenset({"normalization"})))
    for make in (own, ALGORITHMS["fedhalf"]):
        with pytest.raises(UserError, match="^fedhalf needs normalization layers"):
            make(federation.task(), federation.local_training())
        make(federation.task("mlp_bn"), federation.local_training())


@pytest.mark.parametrize("wrong", [{"tags": ("one modle",)}, {"needs": frozenset({"haed"})}])
def test_a_row_with_an_unknown_word_is_refused(wrong):
    with pytest.raises(ValueError, match="one modle|haed"):
        Method("somewhere.method", **wrong)
