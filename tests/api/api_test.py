"""The public names of pfljax, used as a researcher would, by these names alone."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

import pfljax

DRAW = np.random.default_rng(0)
INPUTS = DRAW.normal(size=(90, 3)).astype(np.float32)
LABELS = np.where(INPUTS[:, 0] > 0, "up", "down")
CLIENTS = np.repeat(["ann", "bob", "eve"], 30)
TINY = {"rounds": 2, "eval_every": 1, "model": "logistic", "batch_size": 16}


@pytest.fixture(scope="module")
def data():
    return pfljax.from_arrays(INPUTS, LABELS, CLIENTS, name="toy")


@pytest.fixture(scope="module")
def run(data):
    return pfljax.fit("ditto", data, learning_rate=0.3, lam=0.5, **TINY)


def test_fewer_than_forty_names_each_with_an_example():
    assert len(pfljax.__all__) < 40
    for name in pfljax.__all__:
        assert getattr(pfljax, name).__doc__, name
    with pytest.raises(AttributeError, match="'fti'"):
        pfljax.fti  # noqa: B018


def test_settings_reach_the_config(run):
    config = run.config
    assert (config.hparams.ditto.lam, config.client_optimizer.learning_rate) == (0.5, 0.3)
    assert (config.rounds, config.model.name, config.data.name) == (2, "logistic", "python")


def test_results_are_frames(run):
    assert run.per_round()["round"].tolist() == [0, 1, 2]
    clients = run.per_client()
    assert clients["client_name"].tolist() == ["ann", "bob", "eve"]
    assert clients["personal_test_accuracy"].between(0, 1).all()
    scores = run.evaluate()
    assert scores["personal_test_accuracy"].equals(clients["personal_test_accuracy"])
    axes = run.plot()
    assert axes.get_lines()[0].get_xdata().tolist() == [0, 1, 2]


def test_models_of_clients_are_those_that_were_evaluated(run, data):
    for number, name in enumerate(data.client_names):
        model = run.client(name)
        assert (model.client, model.kind) == (name, "personal")
        begin, size = data.test.offsets[number], data.test.sizes[number]
        rows = slice(begin, begin + size)
        labels = np.array(data.class_names)[data.targets[rows]]
        right = np.mean(model.predict(data.inputs[rows]) == labels)
        assert right == pytest.approx(run.per_client()["personal_test_accuracy"][number])
    models = run.clients()
    assert [model.client for model in models] == ["ann", "bob", "eve"]
    np.testing.assert_array_equal(models[1].outputs(INPUTS), run.client("bob").outputs(INPUTS))
    common = run.global_model()
    assert not np.array_equal(common.outputs(INPUTS), models[1].outputs(INPUTS))
    np.testing.assert_allclose(common.predict_proba(INPUTS).sum(axis=1), 1, rtol=1e-6)


def test_a_client_in_another_process(run, tmp_path):
    file = tmp_path / "bob.safetensors"
    run.client("bob").save(file)
    code = f"""
        import numpy as np, pfljax
        model = pfljax.load_model({str(file)!r})
        inputs = np.load({str(tmp_path / "inputs.npy")!r})
        np.savez({str(tmp_path / "out.npz")!r}, a=model.outputs(inputs), b=model.predict(inputs))
        assert model.client == "bob"
    """
    np.save(tmp_path / "inputs.npy", INPUTS)
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
    with np.load(tmp_path / "out.npz") as found:
        # The other process may have other devices, and sums in another order.
        np.testing.assert_allclose(found["a"], run.client("bob").outputs(INPUTS), rtol=1e-5)
        np.testing.assert_array_equal(found["b"], run.client("bob").predict(INPUTS))


def test_more_rounds_equal_a_longer_run(data, tmp_path):
    settings = {**TINY, "learning_rate": 0.3, "planned_rounds": 4, "eval_every": 2}
    short = pfljax.fit("fedavg", data, workdir=tmp_path / "short", **settings)
    longer = short.train(4)
    whole = pfljax.fit("fedavg", data, workdir=tmp_path / "whole", **{**settings, "rounds": 4})
    assert longer.per_round()["round"].tolist() == [0, 2, 4]
    assert longer.per_client().equals(whole.per_client())
    assert short.config.rounds == 2  # not changed
    again = pfljax.open_run(tmp_path / "whole", data)
    np.testing.assert_array_equal(
        again.client("eve").outputs(INPUTS), whole.client("eve").outputs(INPUTS)
    )


def test_the_best_round_is_kept(data, tmp_path):
    settings = {**TINY, "rounds": 8, "learning_rate": 3.0, "seed": 2, "keep_best": True}
    run = pfljax.fit("fedavg", data, workdir=tmp_path, **settings)
    scores = run.per_round()["personal/validation_accuracy_weighted"]
    best = int(run.per_round()["round"][scores.argmax()])
    shorter = {**settings, "rounds": max(1, best), "planned_rounds": 8}
    until = pfljax.fit("fedavg", data, **shorter)
    if best:
        np.testing.assert_array_equal(
            run.global_model(best=True).outputs(INPUTS), until.global_model().outputs(INPUTS)
        )
    assert run.evaluate(best=True)["personal_validation_accuracy"].notna().all()
    with pytest.raises(pfljax.UserError, match="no checkpoint of its best round"):
        until_not_kept = pfljax.fit("fedavg", data, **{**shorter, "keep_best": False})
        until_not_kept.client(0, best=True)


def test_a_finished_run_is_not_repeated(data, tmp_path):
    pfljax.fit("local", data, workdir=tmp_path, **TINY)
    before = (tmp_path / "result.json").stat().st_mtime_ns
    pfljax.fit("local", data, workdir=tmp_path, **TINY)
    assert (tmp_path / "result.json").stat().st_mtime_ns == before
    other = pfljax.from_arrays(INPUTS + 1, LABELS, CLIENTS, name="toy")
    with pytest.raises(pfljax.UserError, match="data.checksum"):
        pfljax.fit("local", other, workdir=tmp_path, **TINY)
    with pytest.raises(pfljax.UserError, match="passed from Python"):
        pfljax.open_run(tmp_path).client(0)
    with pytest.raises(pfljax.UserError, match="another config"):
        pfljax.open_run(tmp_path, other).client(0)


def test_held_out_clients_have_models(data):
    held = pfljax.from_arrays(INPUTS, LABELS, CLIENTS, unseen_fraction=0.34)
    run = pfljax.fit("ditto", held, learning_rate=0.3, **TINY)
    frame = run.per_client()
    assert frame["unseen"].tolist() == [False, False, True]
    rows = slice(held.test.offsets[2], held.test.offsets[2] + held.test.sizes[2])
    names = np.array(held.class_names)[held.targets[rows]]
    right = np.mean(run.client(2).predict(held.inputs[rows]) == names)
    assert right == pytest.approx(frame["personal_test_accuracy"][2])


def test_clients_on_the_host(data, tmp_path):
    on_host = {"engine": {"residence": "host"}, "learning_rate": 0.3, "workdir": tmp_path}
    run = pfljax.fit("ditto", data, **TINY, **on_host)
    frame = run.evaluate()
    rows = slice(data.test.offsets[1], data.test.offsets[1] + data.test.sizes[1])
    names = np.array(data.class_names)[data.targets[rows]]
    right = np.mean(run.client("bob").predict(data.inputs[rows]) == names)
    assert right == pytest.approx(frame["personal_test_accuracy"][1])


def test_methods_and_seeds_are_compared(data, tmp_path):
    found = pfljax.compare(
        ["local", "fedavg"], data, seeds=(0, 1), workdir=tmp_path, learning_rate=0.3, **TINY
    )
    assert found.table().index.tolist() == ["local", "fedavg"]
    assert len(found.per_run()) == 4 and found.diverged == []
    assert found.per_client().groupby(["method", "seed"]).size().tolist() == [3] * 4
    assert found.per_round()["round"].max() == 2
    assert len(found.plot().get_lines()) == 2
    model = found.run("fedavg", 1).client("ann")
    assert model.predict(INPUTS).shape == (90,)
    with pytest.raises(pfljax.UserError, match="no run"):
        found.run("fedavg", 2)
    with pytest.raises(pfljax.UserError, match="one partition"):
        pfljax.compare(["local"], data, seeds_vary="everything", **TINY)


def test_a_sweep_finds_the_best_rate(data):
    values = {"learning_rate": [1e-6, 0.3], "lam": [0.1]}
    found = pfljax.sweep("ditto", data, values, **TINY)
    assert found.best == {"learning_rate": 0.3, "lam": 0.1}
    assert found.table()["learning_rate"].tolist() == [0.3, 1e-6]


def test_a_regression_predicts_in_the_units_of_the_targets():
    heights = 170 + 10 * INPUTS[:, 0]
    data = pfljax.from_arrays(INPUTS, heights, CLIENTS, task="regression")
    run = pfljax.fit("local", data, learning_rate=0.1, **{**TINY, "rounds": 20, "eval_every": 20})
    found = run.client("ann").predict(INPUTS)
    assert found.shape == (90,)
    assert np.sqrt(np.mean((found - heights) ** 2)) < 5
    with pytest.raises(pfljax.UserError, match="no classes"):
        run.client("ann").predict_proba(INPUTS)


@pytest.mark.parametrize("name, settings", [("fedem", {}), ("pfedgate", {"released": True})])
def test_a_method_that_predicts_itself_or_adapts_to_a_batch(name, settings, data, tmp_path):
    run = pfljax.fit(name, data, learning_rate=0.3, **settings, **TINY)
    model = run.client("bob")
    rows = slice(data.test.offsets[1], data.test.offsets[1] + data.test.sizes[1])
    names = np.array(data.class_names)[data.targets[rows]]
    right = np.mean(model.predict(data.inputs[rows]) == names)
    assert right == pytest.approx(run.per_client()["personal_test_accuracy"][1])
    model.save(tmp_path / "m.safetensors")
    again = pfljax.load_model(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(again.outputs(INPUTS), model.outputs(INPUTS))


def test_adapters_bring_their_frozen_parameters(data, tmp_path):
    settings = {**TINY, "model": {"name": "mlp", "widths": (4,)}}
    run = pfljax.fit("local", data, learning_rate=0.3, adapter="lora", **settings)
    run.client("bob").save(tmp_path / "m.safetensors")
    again = pfljax.load_model(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(again.outputs(INPUTS), run.client("bob").outputs(INPUTS))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"lamm": 0.5}, "Unknown setting 'lamm'. Did you mean 'lam'"),
        ({"num_clients": 3}, r"Pass data=\{'num_clients': ...\}"),
        ({"rounds": "many"}, "rounds is 'many'; it must be of type int"),
        ({"cohort": 3}, "cohort is 3; it must be a dict"),
        ({"cohort": {"sise": 3}}, r"Unknown setting cohort\['sise'\]. Did you mean 'size'"),
        ({"model": "mlpp"}, "Unknown model 'mlpp'"),
        ({"model": 3}, "model is 3; it must be a name"),
        ({"lam": -1.0}, "hparams.ditto.lam is -1.0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"rounds": 0}, "rounds is 0"),
    ],
)
def test_settings_that_are_refused(data, settings, message):
    with pytest.raises(pfljax.UserError, match=message):
        pfljax.fit("ditto", data, **{**TINY, **settings})


def test_arguments_that_are_refused(data, run, tmp_path):
    for call, message in (
        (lambda: pfljax.fit("dito", data), "Did you mean 'ditto'"),
        (lambda: pfljax.fit("ditto", INPUTS), "is a ndarray: pass"),
        (lambda: pfljax.fit("ditto", "digist"), "digits"),
        (lambda: run.client("carl"), "no client 'carl'"),
        (lambda: run.client(3), "no client 3"),
        (lambda: run.client(0).predict(INPUTS[:, :2]), r"the shape \(90, 2\)"),
        (lambda: run.train(1), "2 rounds"),
        (lambda: pfljax.open_run(tmp_path), "contains no run"),
        (lambda: pfljax.load_model(tmp_path / "none"), "none"),
        (lambda: pfljax.compare([], data), "at least one method"),
        (lambda: pfljax.sweep("ditto", data, {"lamm": [1.0]}), "lamm"),
    ):
        with pytest.raises(pfljax.UserError, match=message):
            call()
    assert pfljax.fit("local", data, **TINY).result["rounds"] == 2
    with pytest.raises(pfljax.UserError, match="no global model"):
        pfljax.fit("local", data, **TINY).global_model()


def test_damaged_models_are_refused(run, tmp_path):
    file = tmp_path / "m.safetensors"
    run.client(0).save(file)
    whole = file.read_bytes()
    for content in (b"", whole[:50], whole[:-8], b"\xff" * 64):
        file.write_bytes(content)
        with pytest.raises(pfljax.UserError, match="m.safetensors"):
            pfljax.load_model(file)
    import safetensors.numpy

    safetensors.numpy.save_file({"w": np.zeros(2, np.float32)}, file)
    with pytest.raises(pfljax.UserError, match="not a model of a client"):
        pfljax.load_model(file)
