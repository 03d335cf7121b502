"""Rewards beside length, and elicitation: on made-up pairs and answers, and recorded baselines."""

import importlib.util
import os
import pathlib

import numpy as np
import pytest

from pfljax import data
from pfljax.data.sources import preferences
from pfljax.errors import UserError

FOLDER = pathlib.Path(__file__).parents[2] / "experiments"


def load(name):
    """Returns a script as a module."""
    spec = importlib.util.spec_from_file_location(f"{name}_script", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script, asking = load("preferences"), load("elicitation")


def made(users=12, each=20, seed=0):
    """Pairs of users who prefer the longer answer, or (every third user) the shorter one."""
    draw = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), each).astype(np.int32)
    length = draw.integers(10, 500, (len(user), 2))
    longer_first = np.where((user % 3 == 0)[:, None], np.sort(length), -np.sort(-length))
    return preferences.Pairs(
        user=user,
        question=draw.integers(0, 80, len(user)),
        tier=np.zeros(len(user), np.int32),
        length=longer_first,
        answer=draw.normal(size=(len(user), 2, 4)).astype(np.float32),
        own=np.zeros((len(user), 2), np.float32),
        mean=np.zeros((len(user), 2), np.float32),
    )


def split(pairs, seed):
    """The pairs as a split data set: the logarithm of the length, then the features."""
    inputs = np.concatenate([np.log1p(pairs.length)[..., None], pairs.answer], axis=-1)
    pool = data.Examples(
        "made",
        inputs.astype(np.float32),
        np.zeros(len(inputs), np.int32),
        0,
        task="preference",
        owners=pairs.user,
        item_of=pairs.question,
    )
    clients = [np.flatnonzero(pairs.user == user) for user in np.unique(pairs.user)]
    fractions = {"test_fraction": 0.3, "validation_fraction": 0.2, "unseen_fraction": 0.0}
    return data.assemble(pool, clients, seed=seed, split="by_item", **fractions)


def test_rows_are_in_one_part():
    dataset = split(made(), 3)
    rows = script.rows_of(dataset)
    assert (rows.train.astype(int) + rows.validation + rows.test == 1).all()
    assert np.bincount(rows.user).tolist() == [20] * 12
    client = 5
    own = dataset.test.offsets[client] + np.arange(dataset.test.sizes[client])
    np.testing.assert_array_equal(np.flatnonzero(rows.test & (rows.user == client)), own)
    np.testing.assert_allclose(
        rows.gaps[:, 0], dataset.inputs[:, 0, 0] - dataset.inputs[:, 1, 0], atol=1e-6
    )


def test_the_length_weight_of_a_user():
    longer = np.array([1, 1, 1, 0, 0, 0.5, 1])
    user = np.array([0, 0, 0, 1, 1, 2, 2])
    train = np.array([1, 1, 0, 1, 1, 1, 0], bool)
    found = script.by_user(longer, user, train, prior=1.0)
    assert found.tolist() == [1, 1, 1, -1, -1, 0, 0]  # of all, half of the pairs
    strong = script.by_user(
        np.array([1, 1, 1, 1.0, 0]), np.array([0, 0, 0, 1, 1]), train[:5], 100.0
    )
    assert strong.tolist() == [1] * 5


def test_the_reward_is_the_minimum_of_its_loss():
    draw = np.random.default_rng(1)
    design, penalty = draw.normal(size=(60, 3)) + 0.4, np.array([0.5, 2.0, 1.0])

    def loss(w):
        return np.sum(np.log1p(np.exp(-design @ w))) + 0.5 * np.sum(penalty * w**2)

    found = script.fit(design, penalty)
    for direction in np.eye(3):
        assert loss(found) < min(loss(found + 1e-3 * direction), loss(found - 1e-3 * direction))
    # Separable pairs have finite weights.
    assert np.isfinite(script.fit(np.abs(design), np.full(3, 0.01))).all()


def test_users_who_prefer_shorter_answers_are_found(tmp_path):
    datasets = {seed: split(made(), seed) for seed in (0, 1)}
    found, counts = script.accuracies(datasets, False, [])
    values = {name: of.mean() for name, of in found.items()}
    assert len(counts) == 12 and values["longer answer"] == pytest.approx(8 / 12)
    assert counts.sum() == sum(dataset.test.sizes.sum() for dataset in datasets.values())
    assert values["longer answer by user"] > 0.95
    assert values["... and length by user"] > values["length + features"] + 0.1
    text = script.table(found, 0)
    assert text[2].endswith("| - |") and "(+0." in text[3]


def test_cosines_are_rows_and_references():
    pairs = made()
    cosines = np.tile([[0.9, 0.1]], (240, 1))
    answer = np.stack([cosines, -cosines, *np.moveaxis(pairs.answer, -1, 0)], axis=-1)
    found, _ = script.accuracies({0: split(pairs._replace(answer=answer), 0)}, True, [])
    assert found["own persona"].tolist() == [1.0] * 12 and not found["mean persona"].any()
    assert script.table(found, 0)[0].count("gain over") == 2


def write_run(directory, dataset, seed, accuracy):
    path = directory / f"seed_{seed}"
    path.mkdir(parents=True)
    sizes = dataset.test.sizes
    scores = np.where(sizes > 0, accuracy, np.nan)
    np.savez(
        path / "clients.npz",
        train_size=dataset.train.sizes,
        test_size=sizes,
        personal_test_accuracy=scores,
    )


def test_finished_runs_are_rows(tmp_path):
    datasets = {seed: split(made(), seed) for seed in (0, 1)}
    for seed, dataset in datasets.items():
        write_run(tmp_path / "all" / "fedavg", dataset, seed, [0.25, 0.75][seed])
        write_run(tmp_path / "copl" / "CoPL, graph", dataset, seed, 0.5)
    found, counts = script.accuracies(datasets, False, [tmp_path / "all", tmp_path / "copl"])
    assert found["CoPL, graph (copl)"] == pytest.approx(0.5)
    tested = [datasets[seed].test.sizes for seed in (0, 1)]
    wanted = (0.25 * tested[0] + 0.75 * tested[1]) / counts
    np.testing.assert_allclose(found["FedAvg (all)"], wanted)
    write_run(tmp_path / "all" / "local", datasets[0], 0, 0.5)
    with pytest.raises(UserError, match=r"Local \(all\) has no finished run with seed 1"):
        script.accuracies(datasets, False, [tmp_path / "all"])
    with pytest.raises(UserError, match="has no finished run with seed 0: run compare.py"):
        script.accuracies(datasets, False, [tmp_path / "nothing"])
    write_run(tmp_path / "other" / "local", datasets[1], 0, 0.5)
    with pytest.raises(UserError, match="has other users or splits than this config with seed 0"):
        script.accuracies(datasets, False, [tmp_path / "other"])


def test_configs_of_recorded_pairs():
    path = FOLDER.parent / "configs" / "preferences.py"
    spec = importlib.util.spec_from_file_location("preferences_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    prism, few = module.get_config("prism"), module.get_config("prism:few")
    assert prism.data.options.prism_pairs.features == "both"
    assert few.data.options.prism_pairs.features == "length"
    assert prism.seeds == few.seeds and prism.data.split == few.data.split == "by_item"
    for tier in preferences.TIERS:
        config = module.get_config(f"persona:{tier}:hidden_map")
        assert config.data.options.persona_feedback.tier == tier
        assert config.algorithms == ("local",) and config.preference.loss == "dpo"
    for name in ("persona", "persona:rare", "prism:some", "prism:few:more"):
        with pytest.raises(UserError, match="persona:mid or persona:hard"):
            module.get_config(name)


def test_tiers():
    pairs = made()._replace(tier=np.arange(240) % 3, length=np.tile([[2, 1]], (240, 1)))
    pairs = pairs._replace(own=np.tile([[0.1, 0.1]], (240, 1)), mean=np.tile([[0, 1]], (240, 1)))
    lines = script.whole_table(pairs)
    assert lines[2:] == [
        "| longer answer | 1.000 | 1.000 | 1.000 |",
        "| own persona | 0.500 | 0.500 | 0.500 |",
        "| mean persona | 0.000 | 0.000 | 0.000 |",
    ]


def test_recorded_baselines_of_persona_feedback():
    root = os.environ.get("PFLJAX_DATA", "")
    if not root or not (pathlib.Path(root) / "persona_feedback").is_dir():
        pytest.skip("PFLJAX_DATA names no folder that holds persona_feedback")
    lines = script.whole_table(preferences.read_persona_feedback(root))
    assert lines[2:] == [
        "| longer answer | 0.766 | 0.745 | 0.728 |",
        "| own persona | 0.868 | 0.798 | 0.611 |",
        "| mean persona | 0.806 | 0.700 | 0.571 |",
    ]


def test_curves_of_questions():
    draw = np.random.default_rng(0)
    kinds = draw.integers(0, 2, 60)
    answers = np.where(draw.uniform(size=(60, 8)) < 0.9, kinds[:, None], 1 - kinds[:, None])
    known = draw.uniform(size=(60, 8)) < 0.9
    found = asking.curves(answers, known, folds=2, questions=2)
    assert len(found) == 9 and {of.shape for of in found.values()} == {(3, 60)}
    for (model, _), values in found.items():
        np.testing.assert_array_equal(values[0], found[model, "random"][0])
        assert np.nanmean(values[2]) > np.nanmean(values[0]) + 0.1
    lines = asking.table(found, 0)
    assert len(lines) == 11 and lines[2].endswith("| - |")
    assert lines[0].count("|") == lines[1].count("|") == lines[4].count("|")


def test_simulated_answers_are_the_preferences_of_the_users():
    answers, known = asking.preferred_answers()
    assert answers.shape == known.shape == (1000, 60) and known.all()
    assert 0.4 < answers.mean() < 0.6
    agreement = np.mean(answers[:-1] == answers[1:])
    assert 0.5 < agreement < 0.8, "users should agree in part"
