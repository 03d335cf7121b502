"""Clients with models of different architectures, from a config to results and deployed models."""

import flax.linen as nn
import numpy as np
import pytest
from runs import assert_same_run, config, interrupt_at

import pfljax
from pfljax import models
from pfljax.errors import UserError
from pfljax.training.run import loop, reopen, runtime, writers
from pfljax.training.study import architectures, experiment, vectorized

NARROW, DEEP = "mlp(widths=(8,))", "mlp(widths=(6, 8))"


def study(**changes):
    """FedProto on five clients, one of them unseen, with cohorts of three and two devices."""
    return config(**{"algorithm": "fedproto", "architectures": (NARROW, DEEP), **changes})


@pytest.fixture(scope="module")
def dataset():
    return experiment.build_dataset(study())


@pytest.fixture(scope="module")
def built(dataset):
    return experiment.build(study(), dataset)


@pytest.fixture(scope="module")
def straight(built, tmp_path_factory):
    directory = tmp_path_factory.mktemp("straight")
    return directory, loop.run(built, directory), None


def test_results_name_the_architecture_of_each_client(straight):
    directory, result, _ = straight
    assert result["model"] == f"{NARROW} / {DEEP}"
    # 10 prototypes of 8 features, and their weights, whatever the architecture.
    assert result["upload_bytes"] == 4 * (10 * 8 + 10)
    clients = np.load(directory / "clients.npz")
    assert clients["architecture"].tolist() == [NARROW, DEEP, NARROW, DEEP, NARROW]
    assert clients["unseen"].tolist() == [False] * 4 + [True]
    first, *_, last = writers.read_rows(directory / "metrics.jsonl")
    assert last["personal/test_accuracy_weighted"] > first["personal/test_accuracy_weighted"]
    scores = clients["personal_test_accuracy"]
    assert last["personal/test_accuracy_worst_decile"] == pytest.approx(scores[:4].min())
    assert last["personal/unseen_test_accuracy_weighted"] == pytest.approx(scores[4])


def test_deployed_models_are_those_that_were_evaluated(straight, dataset, tmp_path):
    directory, *_ = straight
    run = pfljax.open_run(directory)
    scores = run.per_client()
    np.testing.assert_array_equal(
        run.evaluate()["personal_test_accuracy"], scores["personal_test_accuracy"]
    )
    chosen = run.clients([3, 0, 4])
    for model in chosen:
        layers = [f"Dense_{index}" for index in range(1 + model.client % 2)]
        assert sorted(model.params["model"]["body"]) == layers
        begin = dataset.test.offsets[model.client]
        rows = slice(begin, begin + dataset.test.sizes[model.client])
        right = np.mean(model.predict(dataset.inputs[rows]) == dataset.targets[rows])
        assert right == pytest.approx(scores["personal_test_accuracy"][model.client])
    chosen[0].save(tmp_path / "client.safetensors")
    again = pfljax.load_model(tmp_path / "client.safetensors")
    np.testing.assert_array_equal(
        again.outputs(dataset.inputs[:5]), chosen[0].outputs(dataset.inputs[:5])
    )
    assert again.config.model.widths == (6, 8)


def test_an_interrupted_run_resumes_exactly(built, straight, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        loop.run(built, tmp_path, progress=interrupt_at(4))
    assert_same_run(tmp_path, loop.run(built, tmp_path, resume=True), straight)


def test_a_checkpoint_is_read_on_another_number_of_devices(straight):
    directory, *_ = straight
    with reopen.reopen(directory, study(**{"engine.devices": 3})) as opened:
        found = opened.evaluate()["personal"]["test"]["loss"] / opened.experiment.dataset.test.sizes
    clients = np.load(directory / "clients.npz")
    np.testing.assert_allclose(found, clients["personal_test_loss"], rtol=1e-5)


def test_seeds_train_in_one_program(dataset, straight, tmp_path):
    configs = [study(seed=seed) for seed in (1, 0)]
    directories = [tmp_path / "one", tmp_path / "two"]
    together = vectorized.build(configs, datasets=[dataset] * 2)
    results = loop.run_vectorized(together, configs, directories)
    assert results[0]["personal_accuracy"] != results[1]["personal_accuracy"]
    ours, theirs = (np.load(path / "clients.npz") for path in (directories[1], straight[0]))
    np.testing.assert_allclose(ours["personal_test_loss"], theirs["personal_test_loss"], rtol=1e-4)


def test_equal_architectures_are_one_model(dataset, tmp_path):
    changes = {"algorithm": "fedavg", "rounds": 3}
    pair = study(architectures=(NARROW, NARROW), **changes)
    alone = config(**changes)
    found = []
    for name, one in (("pair", pair), ("alone", alone)):
        loop.run(experiment.build(one, dataset), tmp_path / name)
        found.append(np.load(tmp_path / name / "clients.npz"))
    for model in ("personal", "global"):
        key = f"{model}_test_loss"
        np.testing.assert_allclose(found[0][key], found[1][key], rtol=1e-5)


def test_titles_of_comparisons_name_the_architectures():
    found = pfljax.compare(
        ["local"], "digits", seeds=(0,), rounds=1, architectures=[NARROW, "logistic"]
    )
    assert f"{NARROW} / logistic, 1 round" in (found.directory / "comparison.md").read_text()


def test_a_text_is_a_model_with_arguments():
    assert architectures.parse("mlp") == {"name": "mlp"}
    assert architectures.parse(" mlp(widths=64) ") == {"name": "mlp", "widths": (64,)}
    assert [one.model.widths for one in architectures.each(study())] == [(8,), (6, 8)]


@pytest.mark.parametrize(
    "text, message",
    [
        ("mlp(64)", "write the name of a model, with its arguments as in 'mlp"),
        ("mlp(widths=(64,)", "write the name of a model"),
        ("mlp(**x)", "write the name of a model"),
        ("mlp(widths=x)", "write the name of a model"),
        ("mlp(widths={[]: 1})", "write the name of a model"),
        ("models.mlp", "write the name of a model"),
        ("", "write the name of a model"),
        (3, "contains 3; write the name of a model"),
        ("mpl", "model in config.architectures, 'mpl'.* Did you mean 'mlp'?"),
        ("mlp(widht=(3,))", "argument in config.architectures of the model mlp, 'widht'"),
        ("mlp(widths=(0,))", "widths of 'mlp.widths=.0,..' is .0,.; it must be"),
    ],
)
def test_a_text_that_is_no_model(text, message):
    with pytest.raises(UserError, match=message):
        experiment.check(study(architectures=("mlp", text)))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"architectures": (NARROW,)}, "config.architectures has only 'mlp"),
        ({"engine.residence": "host"}, "config.engine.residence='host' is for models of one"),
        ({"engine.clients_per_chunk": "auto"}, "config.engine.clients_per_chunk='auto' is for"),
        ({"init_from": "params.npz"}, "config.init_from is a file with the params of one model"),
        ({"adapter.name": "lora", "adapter.base": "a.npz"}, "config.adapter.base is a file"),
        ({"architectures": ("mlp",) * 5}, "has 5 models, but 4 clients take part"),
        ({"architectures": ("mlp", "lenet")}, "config.architectures, 'lenet': The model lenet"),
        ({"algorithm": "fedbn"}, "FedBN needs normalization layers"),
    ],
)
def test_settings_without_architectures_are_refused(dataset, changes, message):
    with pytest.raises(UserError, match=message):
        experiment.build(study(**changes), dataset)


@pytest.mark.parametrize(
    "name, second, message",
    [
        ("fedavg", DEEP, "FedAvg exchanges the whole model, .* in 'mlp.* than in .*; choose a"),
        ("fedper", DEEP, "FedPer exchanges the body of the model, which has other arrays"),
        ("mime", DEEP, "Mime exchanges the whole model"),
        ("fml", DEEP, "set config.hparams.fml.meme.name to the model that all clients exchange"),
        ("fedkd", DEEP, "set config.hparams.fedkd.mentee.name to the model that all clients"),
        ("lg_fedavg", "mlp(widths=(8, 6))", "LG-FedAvg exchanges the head of the model, so that"),
        ("fedproto", "mlp(widths=6)", "must have one width, and those of 'mlp.* have 8 entries"),
        ("fedgh", "mlp(widths=6)", "one width, .* set their arguments in config.architectures"),
        ("fedpcl", "mlp(widths=6)", "one width, .* such as the last of the widths"),
    ],
)
def test_methods_without_anything_to_exchange_are_refused(dataset, name, second, message):
    counter = runtime.CompilationCounter()
    with pytest.raises(UserError, match=message):
        experiment.build(study(algorithm=name, architectures=(NARROW, second)), dataset)
    counter.close()
    assert not counter.programs


def test_one_body_with_different_heads(dataset, tmp_path):
    """FedPer exchanges the common body; the user registers networks with other heads."""

    def network(*head):
        def build(shape, outputs):
            dense = [nn.Dense(width) for width in head]
            body = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(8), nn.relu])
            return models.from_flax(body, nn.Sequential([*dense, nn.Dense(outputs)]), shape)

        return build

    for name, head in {"plain": (), "deep": (5,), "deeper": (5, 4)}.items():
        build = network(*head)
        build.__name__ = name
        pfljax.register_model(build)
    own = study(algorithm="fedper", architectures=("plain", "deep", "deeper"), rounds=3)
    loop.run(experiment.build(own, dataset), tmp_path)
    first, last = writers.read_rows(tmp_path / "metrics.jsonl")
    assert last["personal/test_loss_weighted"] < first["personal/test_loss_weighted"]
