"""Vectorized runs: each writes the results of a separate run."""

import json

import numpy as np
import pytest

from pfljax.algorithms import ALGORITHMS
from pfljax.errors import UserError
from pfljax.training.run import loop, writers
from pfljax.training.study import experiment, vectorized
from pfljax.training.study.config import default_config


def config(**changes):
    """Ditto on the digits of five clients."""
    made = default_config()
    settings = {
        "algorithm": "ditto",
        "rounds": 6,
        "eval_every": 3,
        "checkpoint_every": 2,
        "cohort.size": 3,
        "data.num_clients": 5,
        "data.alpha": 1.0,
        "engine.devices": 2,
        "engine.rounds_per_call": 2,
    }
    made.model.widths = (8,)
    made.update_from_flattened_dict(settings | changes)
    return made


LAMS = (0.1, 0.1, 2.0)
SEEDS = (0, 1, 1)


def configs(**changes):
    return [
        config(**{"seed": seed, "hparams.ditto.lam": lam, **changes})
        for seed, lam in zip(SEEDS, LAMS, strict=True)
    ]


@pytest.fixture(scope="module")
def built():
    return vectorized.build(configs())


@pytest.fixture(scope="module")
def finished(built, tmp_path_factory):
    """The directories and results of three runs."""
    places = [tmp_path_factory.mktemp("together") / str(number) for number in range(3)]
    return places, loop.run_vectorized(built, configs(), places)


def close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        np.testing.assert_allclose(value, theirs[key], rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("number", [0, 2])
def test_each_writes_the_files_of_a_separate_run(number, finished, tmp_path):
    places, results = finished
    own = configs()[number]
    alone = loop.run(experiment.build(own), tmp_path)
    rows = [writers.read_rows(place / "metrics.jsonl") for place in (places[number], tmp_path)]
    assert len(rows[0]) == len(rows[1])
    for ours, theirs in zip(*rows, strict=True):
        close(ours, theirs)
    close(results[number]["personal_accuracy"], alone["personal_accuracy"])
    for name in ("config.json", "checkpoints", "clients.npz", "result.json"):
        assert (places[number] / name).exists()
    assert json.loads((places[number] / "config.json").read_text()) == json.loads(
        (tmp_path / "config.json").read_text()
    )
    assert results[number]["compilations"] == 1
    assert results[number]["compilations_after_first_round"] == 0


def test_they_are_resumed_together_from_their_checkpoints(finished, built, tmp_path):
    places, results = finished
    new = [tmp_path / str(number) for number in range(3)]
    stopped = [c for c in configs(rounds=4)]
    loop.run_vectorized(built._replace(config=stopped[0]), stopped, new)
    resumed = loop.run_vectorized(built, configs(), new, resume=True)
    for ours, theirs in zip(resumed, results, strict=True):
        assert ours["personal_accuracy"] == theirs["personal_accuracy"]


def test_one_run_of_a_vectorized_program_can_be_resumed_alone(finished):
    places, results = finished
    own = configs(rounds=8)[1]
    result = loop.run(experiment.build(own), places[1], resume=True)
    assert result["rounds"] == 8


def test_runs_that_stopped_at_different_rounds_are_not_resumed_together(built, tmp_path):
    places = [tmp_path / str(number) for number in range(3)]
    first = configs(rounds=4)[0]
    loop.run(experiment.build(first), places[0])
    with pytest.raises(UserError, match="different numbers of rounds"):
        loop.run_vectorized(built, configs(), places, resume=True)


def test_a_variant_that_diverges_leaves_the_others_alone(tmp_path):
    rates = configs(rounds=3, checkpoint_every=1)
    for number, rate in enumerate((0.05, 1e30, 0.02)):
        rates[number].client_optimizer.learning_rate = rate
    places = [tmp_path / str(number) for number in range(3)]
    results = loop.run_vectorized(vectorized.build(rates), rates, places)
    assert [result is None for result in results] == [False, True, False]
    reason = writers.read_json(places[1] / "result.json")["diverged"]["reason"]
    assert "ditto diverged: the state or loss of client" in reason and "round 1;" in reason
    hopeless = [rates[1], rates[1].copy_and_resolve_references()]
    hopeless[1].seed = 9
    places = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(UserError, match="learning_rate"):
        loop.run_vectorized(vectorized.build(hopeless), hopeless, places)


@pytest.mark.parametrize(
    "key, values, message",
    [
        ("batch_size", (5, 10), "config.batch_size cannot differ"),
        ("model.widths", ((8,), (9,)), "config.model.widths cannot differ"),
        ("client_optimizer.name", ("sgd", "adam"), "cannot differ"),
        ("client_optimizer.decay", (0.9, 1.0), "cannot differ"),
        ("client_optimizer.learning_rate", (0.1, -1.0), "must be a positive finite"),
    ],
)
def test_what_cannot_differ_is_refused_before_anything_is_compiled(key, values, message):
    with pytest.raises(UserError, match=message):
        vectorized.build([config(**{key: value}) for value in values])


def test_a_number_that_decides_shapes_is_refused():
    changes = [{"algorithm": "fedem", "hparams.fedem.learners": count} for count in (2, 3)]
    with pytest.raises(UserError, match="learners.* determines the shape"):
        vectorized.build([config(**change) for change in changes])


def test_a_learning_rate_of_the_method_may_differ():
    rates = [config(**{"learning_rates.ditto": rate}) for rate in (0.1, 0.2)]
    assert vectorized.differences(rates) == {"learning_rates.ditto": [0.1, 0.2]}
    assert vectorized.build(rates).num_runs == 2


def test_a_norm_to_clip_by_may_differ(tmp_path):
    norms = [config(rounds=2, **{"client_optimizer.clip_norm": norm}) for norm in (0.01, 100.0)]
    places = [tmp_path / str(number) for number in range(3)]
    swept = loop.run_vectorized(vectorized.build(norms), norms, places[:2])
    alone = loop.run(experiment.build(norms[0]), places[2])
    assert swept[0]["personal_accuracy"] == alone["personal_accuracy"]
    loss = [writers.read_rows(place / "metrics.jsonl")[-1]["train/loss"] for place in places]
    assert loss[0] == pytest.approx(loss[2], rel=1e-5) and loss[1] < loss[0]


def test_runs_that_stopped_at_the_same_round_can_be_resumed_together(tmp_path):
    for number, rounds in enumerate(((2, 4), (), (4,), (2,), ())):
        for done in rounds:
            (tmp_path / str(number) / "checkpoints" / str(done)).mkdir(parents=True)
    places = [tmp_path / str(number) for number in range(5)]
    assert vectorized.group_by_round(places) == [[0, 2], [1, 4], [3]]


def test_experiments_can_share_one_copy_of_the_examples(built):
    again = vectorized.build(configs(), built)
    assert again.examples is built.examples


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_method_can_be_built_for_several_seeds(name):
    needs = ALGORITHMS[name].needs
    changes = {"algorithm": name, "model.name": "mlp_bn" if "normalization" in needs else "mlp"}
    if "server_data" in ALGORITHMS[name].needs:
        changes["data.server_fraction"] = 0.1
    if "full_participation" in ALGORITHMS[name].needs:
        changes["cohort.size"] = 0
    both = [config(seed=seed, **changes) for seed in (0, 1)]
    if "adapters" in needs:
        for made in both:
            del made.model["widths"]
            made.model.name, made.model.adapter_width = "vit", 3
    if "prompts" in needs:
        for made in both:
            del made.model["widths"]
            made.model.name = "two_tower" if "class_features" in needs else "vit"
            made.adapter.name = "prompt"
            if "class_features" in needs:
                made.adapter.layers, made.adapter.head = "head", "frozen"
    assert vectorized.build(both).num_runs == 2


def test_seeds_on_separate_partitions_share_a_program(tmp_path):
    seeds = [config(**{"seed": seed, "data.seed": seed}) for seed in (0, 1)]
    datasets = [experiment.build_dataset(one) for one in seeds]
    assert datasets[0].train.sizes.max() != datasets[1].train.sizes.max()
    places = [tmp_path / str(seed) for seed in (0, 1)]
    built = vectorized.build(seeds, datasets=datasets)
    results = loop.run_vectorized(built, seeds, places, datasets)
    for one, result, place in zip(seeds, results, places, strict=True):
        alone = loop.run(experiment.build(one), tmp_path / f"alone_{one.seed}")
        close(result["personal_accuracy"], alone["personal_accuracy"])
        ours, theirs = (
            np.load(path / "clients.npz") for path in (place, tmp_path / f"alone_{one.seed}")
        )
        np.testing.assert_array_equal(ours["train_size"], theirs["train_size"])


def test_data_sets_of_different_forms_share_no_program():
    seeds = [config(**{"seed": seed, "data.num_clients": 5 + seed}) for seed in (0, 1)]
    datasets = [experiment.build_dataset(one) for one in seeds]
    with pytest.raises(UserError, match="seeds_vary=training"):
        vectorized.build(seeds, datasets=datasets)


def test_runs_that_score_other_clients_share_no_program():
    seeds = [
        config(**{"seed": seed, "data.seed": seed, "engine.eval_clients": 2}) for seed in (0, 1)
    ]
    datasets = [experiment.build_dataset(one) for one in seeds]
    chosen = [experiment.choose_evaluated(*each) for each in zip(seeds, datasets, strict=True)]
    assert not np.array_equal(*chosen)
    with pytest.raises(UserError, match="eval_clients chooses different clients"):
        vectorized.build(seeds, datasets=datasets)


def test_resumed_runs_keep_their_client_batch_size(tmp_path):
    for number, chunk in enumerate((1, 4, 1)):
        (tmp_path / str(number)).mkdir()
        writers.write_json(tmp_path / str(number) / "engine.json", {"clients_per_chunk": chunk})
    assert vectorized.group_by_round([tmp_path / str(number) for number in range(3)]) == [
        [0, 2],
        [1],
    ]
