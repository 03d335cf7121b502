"""Scores of clients across methods, on runs written by hand, against NumPy and SciPy."""

import json

import numpy as np
import pytest
from scipy import stats

from pfljax import compare_clients, metrics
from pfljax.errors import UserError
from pfljax.report import clients
from pfljax.training.run import writers

SIZES = np.array([5, 50, 20, 8, 35, 90])
FEDAVG = np.array([0.5, 0.6, 0.7, 0.4, 0.9, 0.8])
DITTO = np.array([0.6, 0.9, 0.7, 0.3, 1.0, 0.95])


def write(root, method, scores, *, seed=0, arrays=None, metric="accuracy", **result):
    """Leaves the files of a finished run; the last client is held out and its score is 0."""
    directory = root / method / f"seed_{seed}"
    directory.mkdir(parents=True)
    n = len(scores)
    of_metric = {"title": metric, "percent": metric == "accuracy"}
    of_metric |= {"more_is_better": metric == "accuracy", "clients": int(np.sum(~np.isnan(scores)))}
    of_metric |= {"personal": None, "global": None}
    found = {
        "algorithm": method,
        "seed": seed,
        "data_seed": 7,
        "partition": "dirichlet",
        "score_name": metric,
        "more_is_better": metric == "accuracy",
        "metrics": {metric: of_metric},
    }
    writers.write_json(directory / "result.json", found | result)
    (directory / "metrics.jsonl").write_text(json.dumps({"round": 1}) + "\n")
    saved = {
        "client": np.arange(n + 1),
        "train_size": np.append(np.resize(SIZES, n), 9),
        "test_size": np.full(n + 1, 10),
        "unseen": np.arange(n + 1) == n,
        f"personal_test_{metric}": np.append(scores, 0.0),
    }
    np.savez(directory / "clients.npz", **saved | (arrays or {}))


def row_of(root, method="ditto", **given):
    return compare_clients(root, against="fedavg", **given).loc[method]


def test_a_table_equals_numpy_and_scipy(tmp_path):
    write(tmp_path, "ditto", DITTO)
    write(tmp_path, "fedavg", FEDAVG)
    frame = compare_clients(tmp_path, against="fedavg")
    assert frame.index.tolist() == ["fedavg", "ditto"]
    row, gain = frame.loc["ditto"], DITTO - FEDAVG
    assert row["mean"] == pytest.approx(DITTO.mean(), abs=1e-12)
    assert row.personalization_bias == pytest.approx(DITTO.std(), abs=1e-12)
    assert row.worst_decile == 0.3
    assert row.gain == pytest.approx(gain.mean(), abs=1e-12)
    assert row.gaining == 4 / 6  # one client gains nothing, and one loses
    exact = np.round(gain, 9)  # with ties
    assert row.size_correlation == pytest.approx(stats.spearmanr(exact, SIZES).statistic)
    # A second implementation of the bootstrap, with other random numbers.
    drawn = np.random.default_rng(5).choice(gain, (200_000, len(gain))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (row.gain_low, row.gain_high) == pytest.approx((low, high), abs=0.006)
    reference = frame.loc["fedavg"]
    assert reference["mean"] == pytest.approx(FEDAVG.mean()) and np.isnan(reference.gain)
    assert compare_clients(tmp_path, against="fedavg").equals(frame)


def test_the_interval_of_two_clients_is_that_of_all_resamples(tmp_path):
    """A quarter of the resamples has the first client twice, and a quarter the second one."""
    write(tmp_path, "ditto", np.array([0.5, 0.9]))
    write(tmp_path, "fedavg", np.array([0.5, 0.5]))
    row = row_of(tmp_path)
    assert (row.gain, row.gain_low, row.gain_high) == pytest.approx((0.2, 0.0, 0.4))


def test_held_out_clients_are_compared_on_their_own(tmp_path):
    held_out = {"unseen": np.arange(7) > 3, "test_size": np.array([9, 9, 9, 9, 9, 9, 0])}
    for method, scores in (("ditto", DITTO), ("fedavg", FEDAVG)):
        own = {"personal_test_accuracy": np.append(scores, np.nan)}
        write(tmp_path, method, scores, arrays=held_out | own)
    frame = compare_clients(tmp_path, against="fedavg", unseen=True)
    assert frame["mean"].tolist() == pytest.approx([FEDAVG[4:].mean(), DITTO[4:].mean()])
    assert frame.loc["ditto"].gain == pytest.approx(np.mean((DITTO - FEDAVG)[4:]))
    assert "over 2 clients that are held out and 1 seed" in frame.attrs["notes"][0]


def test_one_held_out_client_cannot_be_compared(tmp_path):
    write(tmp_path, "fedavg", FEDAVG)
    with pytest.raises(UserError, match="1 held-out client has a score; .*unseen_fraction"):
        compare_clients(tmp_path, against="fedavg", unseen=True)


def test_clients_of_several_seeds_count_once_if_they_are_the_same(tmp_path):
    for seed in (0, 1, 2):
        write(tmp_path, "fedavg", FEDAVG - 0.1 * seed, seed=seed)
        write(tmp_path, "ditto", DITTO + 0.01 * seed, seed=seed)
    row, gain = row_of(tmp_path), DITTO - FEDAVG + 0.11
    assert row["mean"] == pytest.approx(DITTO.mean() + 0.01)
    assert row.gain == pytest.approx(gain.mean())
    drawn = np.random.default_rng(5).choice(gain, (200_000, len(gain))).mean(axis=1)
    assert row.gain_low == pytest.approx(np.quantile(drawn, 0.025), abs=0.006)


def test_clients_of_seeds_with_partitions_of_their_own_are_different_ones(tmp_path):
    for seed in (0, 1):
        write(tmp_path, "fedavg", FEDAVG, seed=seed, data_seed=seed)
        write(tmp_path, "ditto", DITTO, seed=seed, data_seed=seed)
    frame = compare_clients(tmp_path, against="fedavg")
    twice = np.tile(DITTO - FEDAVG, 2)
    drawn = np.random.default_rng(5).choice(twice, (200_000, 12)).mean(axis=1)
    assert frame.loc["ditto"].gain_low == pytest.approx(np.quantile(drawn, 0.025), abs=0.006)
    assert "over 12 clients" in frame.attrs["notes"][0]
    assert "its own partition" in frame.attrs["notes"][1]
    with pytest.raises(UserError, match="seeds_vary=training"):
        compare_clients(tmp_path, groups={0: "a"})


def test_clients_with_names_are_recognized_in_any_order(tmp_path):
    names = np.array([*"abcdef", "held out"])
    for seed in (0, 1):
        order = np.append(np.roll(np.arange(6), seed), 6)
        arrays = {"train_size": np.append(SIZES, 9)[order], "client_name": names[order]}
        common = {"seed": seed, "data_seed": seed, "arrays": arrays}
        write(tmp_path, "fedavg", FEDAVG[order[:6]], **common)
        write(tmp_path, "ditto", DITTO[order[:6]], **common)
    frame = compare_clients(tmp_path, against="fedavg")
    assert "over 6 clients" in frame.attrs["notes"][0] and len(frame.attrs["notes"]) == 1
    expected = stats.spearmanr(np.round(DITTO - FEDAVG, 9), SIZES).statistic
    assert frame.loc["ditto"].size_correlation == pytest.approx(expected)


@pytest.mark.parametrize("data_seeds", [(0, 1), (None, None)])
def test_equal_numbers_alone_do_not_identify_clients(tmp_path, data_seeds):
    """Seeds may draw or order owners differently; old results lack the seed of the data."""
    for seed, data_seed in enumerate(data_seeds):
        for method, scores in (("fedavg", FEDAVG), ("ditto", DITTO)):
            common = {"seed": seed, "data_seed": data_seed, "partition": "natural"}
            write(tmp_path, method, scores, **common)
    notes = compare_clients(tmp_path).attrs["notes"]
    assert "over 12 clients" in notes[0] and "its own partition" in notes[1]


def test_a_smaller_error_is_a_gain(tmp_path):
    write(tmp_path, "fedavg", np.array([4.0, 2.0, 3.0]), metric="mse")
    write(tmp_path, "ditto", np.array([1.0, 2.5, 3.0]), metric="mse")
    row = row_of(tmp_path)
    assert (row.gain, row.gaining, row.worst_decile) == pytest.approx((2.5 / 3, 1 / 3, 3.0))


def test_rounding_is_no_gain_and_constant_gains_have_no_rank_correlation(tmp_path):
    """0.1 + 0.2 - 0.3 is positive in floating point."""
    for seed, (one, other) in enumerate([(0.1, 0.0), (0.2, 0.0), (0.0, 0.3)]):
        write(tmp_path, "ditto", np.full(4, one), seed=seed)
        write(tmp_path, "fedavg", np.full(4, other), seed=seed)
    row = row_of(tmp_path)
    assert row.gain == row.gaining == 0 and np.isnan(row.size_correlation)
    assert (row.gain_low, row.gain_high) == (0, 0)


def test_the_bias_of_several_metrics_is_that_of_a_vector(tmp_path):
    values = np.stack([DITTO, [0.2, 0.1, 0.9, 0.4, 0.4, 0.0]], axis=1)
    arrays = {"personal_test_auc": np.append(values[:, 1], 0.0)}
    write(tmp_path, "fedavg", FEDAVG, arrays=arrays)
    write(tmp_path, "ditto", DITTO, arrays=arrays)
    centered = values - values.mean(axis=0)
    expected = np.sqrt(np.mean(np.linalg.norm(centered, axis=1) ** 2))
    assert metrics.personalization_bias(values) == pytest.approx(expected)
    row = row_of(tmp_path, metrics=("accuracy", "auc"))
    assert row.personalization_bias == pytest.approx(expected)
    assert row["mean"] == pytest.approx(DITTO.mean())
    with pytest.raises(UserError, match="no metric 'f1', only accuracy, auc"):
        row_of(tmp_path, metrics=("f1",))


def test_gaps_are_of_large_groups_only(tmp_path):
    scores = np.linspace(0, 1, 40)
    write(tmp_path, "fedavg", scores)
    write(tmp_path, "ditto", 1 - 0.5 * scores)
    groups = {client: "young" if client < 15 else "old" for client in range(35)}
    file = tmp_path / "groups.csv"
    rows = "".join(f"{group},{client}\n" for client, group in groups.items())
    file.write_text("group,client\n" + rows + "few,36\nfew,40\n")
    frame = compare_clients(tmp_path, groups=file)
    expected = scores[15:35].mean() - scores[:15].mean()
    assert frame.group_gap.tolist() == pytest.approx([expected, 0.5 * expected])
    assert "old (20 clients), young (15 clients); 5 clients" in frame.attrs["notes"][1]
    assert compare_clients(tmp_path, groups=groups).group_gap.equals(frame.group_gap)
    del groups[0]
    with pytest.raises(UserError, match="old has 20, young has 14"):
        compare_clients(tmp_path, groups=groups)
    with pytest.raises(UserError, match="client '50', which the runs do not have"):
        compare_clients(tmp_path, groups=groups | {50: "old"})


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"", "is empty; it needs exactly the columns"),
        (b"client,age\n1,3\n", "has the columns client, age; it needs exactly the columns"),
        (b"client,group\n1,a\n1,b\n", "'1' is twice"),
        (b"client,group\n1,a\n2,\n", "Row 2 of"),
        (b"client,group\n1,a,b\n", "Row 1 of"),
    ],
)
def test_a_file_of_groups_is_checked(tmp_path, content, message):
    file = tmp_path / "groups.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        clients.read_groups(file)


@pytest.mark.parametrize(
    "scores, arrays, message",
    [
        (DITTO[:-1], {}, "ditto with seed 0 has other clients than fedavg .client 6"),
        (DITTO, {"train_size": np.arange(7)}, "another train_size of client 0"),
        (DITTO, {"unseen": np.zeros(7, bool)}, "another unseen of client 6"),
        (DITTO, {"personal_test_accuracy": np.full(7, np.nan)}, "not finite, among client 0, 1"),
        (DITTO, {"personal_test_accuracy": np.append(DITTO[:-1], [np.inf, 0])}, "among client 5;"),
        (np.append(DITTO[:-1], np.nan), {}, "Client 5 has a score in one of ditto with seed 0"),
    ],
)
def test_runs_that_do_not_compare_are_refused(tmp_path, scores, arrays, message):
    write(tmp_path, "fedavg", FEDAVG)
    write(tmp_path, "ditto", scores, arrays=arrays)
    with pytest.raises(UserError, match=message):
        compare_clients(tmp_path)


def test_clients_without_a_score_in_any_method_are_left_out_with_a_note(tmp_path):
    write(tmp_path, "fedavg", np.append(FEDAVG, np.nan))
    write(tmp_path, "ditto", np.append(DITTO, np.nan))
    frame = compare_clients(tmp_path)
    assert frame.loc["ditto", "mean"] == pytest.approx(DITTO.mean())
    assert frame.attrs["notes"][1].endswith("left out in all methods: 1 over all seeds.")


def test_what_cannot_be_compared_is_said(tmp_path):
    with pytest.raises(UserError, match="has no finished runs"):
        compare_clients(tmp_path)
    write(tmp_path, "fedavg", FEDAVG[:1])
    with pytest.raises(UserError, match="1 client has a score"):
        compare_clients(tmp_path)
    with pytest.raises(UserError, match="Unknown reference method .*'fedavh'"):
        compare_clients(tmp_path, against="fedavh")


def test_methods_and_seeds_without_scores_are_noted(tmp_path):
    diverged = {"diverged": {"round": 1, "reason": "The loss is not finite."}}
    write(tmp_path, "fedavg", FEDAVG)
    write(tmp_path, "ditto", DITTO, **diverged)
    write(tmp_path, "local", FEDAVG)
    write(tmp_path, "local", FEDAVG, seed=3)
    frame = compare_clients(tmp_path)
    assert frame.index.tolist() == ["fedavg", "local"]
    assert frame.attrs["notes"][1:] == [
        "ditto is not shown: it diverged with seed 0.",
        "Not used: seed 3, with which fedavg has no finished run.",
    ]
    with pytest.raises(UserError, match="ditto diverged with seed 0"):
        compare_clients(tmp_path, against="ditto")


def test_markdown_has_a_cell_for_each_title(tmp_path):
    write(tmp_path, "fedavg", FEDAVG)
    write(tmp_path, "ditto", DITTO)
    runs, _ = clients.read(tmp_path, "fedavg")
    head, line, fedavg, ditto, *_ = clients.markdown(clients.compare(runs, "fedavg")).splitlines()
    assert {text.count("|") for text in (head, line, fedavg, ditto)} == {8}
    bias = 100 * np.std([FEDAVG, DITTO], axis=1)
    assert fedavg == f"| fedavg | 65.00 | {bias[0]:.2f} | 40.00 | - | - | - |"
    correlation = stats.spearmanr(np.round(DITTO - FEDAVG, 9), SIZES).statistic
    assert ditto.startswith(f"| ditto | 74.17 | {bias[1]:.2f} | 30.00 | +9.17 (-0.83 to +")
    assert ditto.endswith(f" | 67 | {correlation:+.2f} |")


def test_the_seed_of_the_bootstrap_determines_the_interval(tmp_path):
    drawn = np.random.default_rng(0).uniform(size=(2, 30))
    for method, scores in zip(("fedavg", "ditto"), drawn, strict=True):
        write(tmp_path, method, scores)
    one, again, other = (row_of(tmp_path, seed=seed) for seed in (0, 0, 1))
    assert one.gain_low == again.gain_low != other.gain_low
    assert one.gain == other.gain and one.gain_low == pytest.approx(other.gain_low, abs=0.01)
