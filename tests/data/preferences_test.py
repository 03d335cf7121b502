"""Sources of preferences on made-up files, simulated users, and readers of published files."""

import csv
import io
import json

import numpy as np
import pytest

from pfljax import data
from pfljax.data.sources import preference_files, preferences, simulated_preferences
from pfljax.errors import UserError

LOAD = data.SOURCES
HALF = np.sqrt(0.5)  # so that rows have the norm 1
ANSWERS = ["no", "yes, of course", "peut-être à l'été", "maybe"]
LENGTHS = [2, 14, 17, 5]  # characters; the third one has more bytes


def joined(texts):
    encoded = [text.encode() for text in texts]
    offsets = np.cumsum([0, *map(len, encoded)]).astype(np.int32)
    return np.frombuffer(b"".join(encoded), np.uint8), offsets


def in_8_bits(rows):
    rows = np.array(rows, np.float32)
    scale = np.abs(rows).max(axis=1) / 127
    return np.round(rows / scale[:, None]).astype(np.int8), scale


def write_prism(folder, **changed):
    folder.mkdir(exist_ok=True)
    text, offsets = joined(ANSWERS)
    arrays = {
        "user": np.int16([0, 0, 0, 1, -1]),
        "question": np.int16([0, 1, 0, 1, 0]),
        "first": np.int16([0, 1, 2, 3, 0]),
        "second": np.int16([1, 2, 3, 0, 1]),
        "label": np.uint8([0, 1, 2, 0, 1]),
        "answer_text": text,
        "answer_offsets": offsets,
    }
    np.savez(folder / "prism_pairs.npz", **(arrays | changed))
    rows, scale = in_8_bits([[1, 0], [0, 2], [-1, 1], [2, 2]])
    np.savez(folder / "features_wordllama.npz", answer=rows, answer_scale=scale)
    judged = {
        "judge": np.uint8([0, 0, 1]),
        "pair": np.int16([0, 1, 2]),
        "truth": np.uint8([0, 1, 2]),
        "correct": np.uint8([1, 0, 1]),
        "certainty": np.int8([90, 30, -1]),
    }
    np.savez(folder / "prism_judges.npz", **judged)
    (folder / "codes.json").write_text(json.dumps({"judges": ["one", "other"]}))


def write_persona(folder, **changed):
    folder.mkdir(exist_ok=True)
    text, offsets = joined(ANSWERS)
    arrays = {
        "user": np.int16([0, 0, 1]),
        "question": np.int16([0, 1, 0]),
        "tier": np.uint8([0, 2, 2]),
        "chosen": np.int16([0, 1, 2]),
        "rejected": np.int16([1, 2, 3]),
        "answer_text": text,
        "answer_offsets": offsets,
    }
    np.savez(folder / "persona_feedback.npz", **(arrays | changed))
    rows, scale = in_8_bits([[1, 0], [0, 1], [-HALF, HALF], [HALF, HALF]])
    personas, persona_scale = in_8_bits([[1, 0], [0, 1]])
    features = {"persona": personas, "persona_scale": persona_scale}
    np.savez(folder / "features_use.npz", answer=rows, answer_scale=scale, **features)


def test_prism(tmp_path):
    write_prism(tmp_path / "prism_pairs")
    pool = LOAD["prism_pairs"](str(tmp_path))
    # The tie and the pair of an unknown person are left out; the preferred answer is first.
    assert pool.owners.tolist() == [0, 0, 1] and pool.task == "preference"
    chosen, rejected = [0, 2, 3], [1, 1, 0]
    np.testing.assert_allclose(pool.inputs[:, 0, 0], np.log1p(np.take(LENGTHS, chosen)), rtol=1e-6)
    np.testing.assert_allclose(
        pool.inputs[:, 1, 0], np.log1p(np.take(LENGTHS, rejected)), rtol=1e-6
    )
    np.testing.assert_allclose(pool.inputs[:, 0, 1:], [[1, 0], [-1, 1], [2, 2]], atol=0.01)
    standard = (pool.inputs - pool.mean) / pool.std
    np.testing.assert_allclose(standard.mean(axis=(0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(standard.std(axis=(0, 1)), 1, rtol=1e-4)
    assert LOAD["prism_pairs"](str(tmp_path), features="length").inputs.shape == (3, 2, 1)
    assert LOAD["prism_pairs"](str(tmp_path), features="answer").inputs.shape == (3, 2, 2)
    assert pool.item_of.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    "name, write, others",
    [("prism_pairs", "write_prism", 1), ("persona_feedback", "write_persona", 3)],
)
def test_features_of_answers_are_scaled(tmp_path, name, write, others):
    globals()[write](tmp_path)
    pool = LOAD[name](str(tmp_path), answer_scale=0.25)
    deviations = ((pool.inputs - pool.mean) / pool.std).std(axis=(0, 1))
    np.testing.assert_allclose(deviations, [1] * others + [0.25] * 2, rtol=1e-4)
    with pytest.raises(UserError, match="answer_scale"):
        LOAD[name](str(tmp_path), answer_scale=0.0)


def test_judgements(tmp_path):
    write_prism(tmp_path)
    found = preferences.read_judgements(str(tmp_path))
    assert found.names == ("one", "other") and found.user.tolist() == [0, 0, 0]
    assert found.correct.tolist() == [True, False, True]
    assert found.certainty.tolist() == [90, 30, -1]
    (tmp_path / "codes.json").write_text("{}")
    with pytest.raises(UserError, match="has no list of judges"):
        preferences.read_judgements(str(tmp_path))


def test_persona_feedback(tmp_path):
    write_persona(tmp_path / "persona_feedback")
    pairs = preferences.read_persona_feedback(str(tmp_path))
    assert pairs.length.tolist() == [[2, 14], [14, 17], [17, 5]]
    np.testing.assert_allclose(pairs.own, [[1, 0], [0, -HALF], [HALF, HALF]], atol=0.01)
    np.testing.assert_allclose(pairs.mean, [[HALF, HALF], [HALF, 0], [0, 1]], atol=0.01)
    pool = LOAD["persona_feedback"](str(tmp_path), tier="hard", features="persona")
    assert pool.inputs.shape == (2, 2, 3) and pool.owners.tolist() == [0, 1]
    np.testing.assert_allclose(pool.inputs[..., 1], pairs.own[1:], rtol=1e-6)
    assert LOAD["persona_feedback"](str(tmp_path)).inputs.shape == (3, 2, 5)


@pytest.mark.parametrize(
    "write, name, options, message",
    [
        (write_prism, "prism_pairs", {"features": "lenght"}, "'lenght'.*length"),
        (write_persona, "persona_feedback", {"tier": "middle"}, "'middle'.*mid"),
        (None, "prism_pairs", {}, "No prism_pairs in .*: put prism_pairs.npz, features_wordllama"),
        (None, "persona_feedback", {}, "No persona_feedback in .*: put persona_feedback.npz"),
    ],
)
def test_what_the_user_has_to_change(tmp_path, write, name, options, message):
    if write:
        write(tmp_path)
    with pytest.raises(UserError, match=message):
        LOAD[name](str(tmp_path), **options)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"first": np.int16([0, 1, 2, 9, 0])}, "the answer 9 in row 3"),
        ({"first": np.int16([0, 1])}, "arrays of different lengths"),
        ({"answer_offsets": np.int32([0, 2, 1, 30, 36])}, "offsets that decrease"),
        ({"answer_offsets": np.int32([0, 2, 16, 30, 999])}, "the offset 999"),
        ({"user": np.array(["a"] * 5)}, "without numbers"),
    ],
)
def test_damaged_files(tmp_path, changed, message):
    write_prism(tmp_path, **changed)
    with pytest.raises(UserError, match=message):
        LOAD["prism_pairs"](str(tmp_path))


def test_simulated_users_prefer_the_larger_reward():
    found = simulated_preferences.simulate(users=50, pairs=20, seed=3)
    assert (found.margins > 0).all()
    assert (found.chosen != found.rejected).all()
    np.testing.assert_allclose(found.weights.sum(axis=1), 1)
    rows = found.rewards.reshape(-1, 10)
    np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(rows.std(axis=0), 1, rtol=1e-6)
    # The rewards are linear in the features, up to the constant of their standardization.
    design = np.c_[found.features.reshape(-1, 16), np.ones(1600)]
    residual = np.linalg.lstsq(design, rows, rcond=None)[1]
    np.testing.assert_allclose(residual, 0, atol=1e-6)
    assert found.user.tolist() == np.repeat(np.arange(50), 20).tolist()
    np.testing.assert_array_equal(
        found.inputs[7, 1], found.features[found.prompt[7], found.rejected[7]]
    )


def test_simulated_users_are_random_at_a_temperature():
    settings = {"users": 400, "pairs": 50, "temperature": 0.7}
    found = simulated_preferences.simulate(**settings)
    right = 1 / (1 + np.exp(-np.abs(found.margins) / 0.7))
    deviation = np.sqrt(np.sum(right * (1 - right)))
    assert abs(np.sum(found.margins > 0) - right.sum()) < 4 * deviation
    assert 0.6 < np.mean(found.margins > 0) < 0.95
    again = simulated_preferences.simulate(**settings)
    np.testing.assert_array_equal(found.chosen, again.chosen)
    other = simulated_preferences.simulate(**settings, seed=1)
    assert (found.prompt != other.prompt).any()


def test_alpha_is_how_much_users_agree():
    few, equal = (simulated_preferences.dirichlet_users(2000, 4, a, 0) for a in (0.05, 200.0))
    assert np.mean(few.max(axis=1)) > 0.85
    np.testing.assert_allclose(equal, 0.25, atol=0.1)
    np.testing.assert_allclose(few.mean(axis=0), 0.25, atol=0.05)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"alpha": 0.0}, "simulated_preferences.alpha is 0.0; it must be above 0"),
        ({"answers": 1}, "simulated_preferences.answers"),
        ({"temperature": -1.0}, "simulated_preferences.temperature"),
    ],
)
def test_options_of_simulated_users(options, message):
    with pytest.raises(UserError, match=message):
        LOAD["simulated_preferences"](**options)


def test_simulated_users_are_clients():
    options = {"users": 12, "pairs": 15}
    found = data.load(name="simulated_preferences", partition="natural", options=options)
    assert found.num_clients == 12 and found.task == "preference"
    assert "of 2 answers" in data.describe(found)


def json_lines(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def test_fspo(tmp_path):
    row = {"prompt": "Why?", "response_x": "a\u2028b", "response_y": "c", "scorer_level": "expert"}
    path = json_lines(tmp_path / "elix.jsonl", [{**row, "label": 0}, {**row, "label": 1}])
    one, other = preference_files.read_fspo(path)
    assert one == ("expert", "Why?", "a\u2028b", "c") and other[2:] == ("c", "a\u2028b")
    roleplay = [{"level": "p1", "x": "Who?", "yw": "me", "yl": "you"}]
    (tmp_path / "roleplay.json").write_text(json.dumps(roleplay))
    assert preference_files.read_fspo(tmp_path / "roleplay.json") == [("p1", "Who?", "me", "you")]
    for wrong, message in [
        ({**row, "label": 2}, "the label '2' in row 0"),
        (row, "a row without label"),
        ([1], "that has no columns"),
    ]:
        with pytest.raises(UserError, match=message):
            preference_files.read_fspo(json_lines(tmp_path / "wrong.jsonl", [wrong]))
    (tmp_path / "cut.jsonl").write_text('{"prompt": ')
    with pytest.raises(UserError, match="not a table of JSON lines or CSV"):
        preference_files.read_fspo(tmp_path / "cut.jsonl")


def test_published_persona_feedback(tmp_path):
    row = {"user_id": "u1", "question": "What?", "chosen": "this", "reject": "that"}
    json_lines(tmp_path / "general_easy.jsonl", [row])
    other = {**row, "rejected": "those"}
    del other["reject"]
    json_lines(tmp_path / "specific_hard.jsonl", [other, other])
    found = preference_files.read_persona_feedback(tmp_path)
    assert list(found) == ["specific_hard", "general_easy"]
    assert found["general_easy"] == [("u1", "What?", "this", "that")]
    assert [pair.rejected for pair in found["specific_hard"]] == ["those", "those"]
    with pytest.raises(UserError, match="No persona_feedback in"):
        preference_files.read_persona_feedback(tmp_path / "elsewhere")


def scored_rows():
    draw = np.random.default_rng(0).normal(size=(6, 3, 2))
    return [
        {
            "prompt": f"p{p}",
            "prompt_id": p,
            **{f"response_{k + 1}": f"{p}/{k}" for k in range(3)},
            **{f"response_{k + 1}_model": "m" for k in range(3)},
            **{f"response_{k + 1}_b_{n}": draw[p, k, n] for k in range(3) for n in range(2)},
        }
        for p in range(6)
    ]


def test_personal_llm(tmp_path):
    rows = scored_rows()
    as_csv = io.StringIO()
    writer = csv.DictWriter(as_csv, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    (tmp_path / "scores.csv").write_text(as_csv.getvalue())
    one, other = (
        preference_files.read_personal_llm(path)
        for path in (json_lines(tmp_path / "scores.jsonl", rows), tmp_path / "scores.csv")
    )
    np.testing.assert_array_equal(one.rewards, other.rewards)
    assert one.names == ["b_0", "b_1"] and one.answers[4][2] == "4/2"
    assert one.rewards[4, 2, 1] == rows[4]["response_3_b_1"]
    users = list(preference_files.simulated_users(one, users=7, pairs=9, seed=2))
    assert len(users) == 63 and users[9].user == "1"
    weights = simulated_preferences.dirichlet_users(7, 2, 0.1, 2)
    standard = simulated_preferences.standardized(one.rewards)
    for pair in users:
        p, chosen = map(int, pair.chosen.split("/"))
        rejected = int(pair.rejected.split("/")[1])
        gap = (standard[p, chosen] - standard[p, rejected]) @ weights[int(pair.user)]
        assert gap > 0 and pair.prompt == f"p{p}"
    pool = preference_files.examples(users, lambda texts: np.array([[len(t)] for t in texts]), "x")
    assert pool.inputs.shape == (63, 2, 1) and len(np.unique(pool.owners)) == 7
    with pytest.raises(UserError, match="has no preferences"):
        preference_files.examples([], len, "x")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"response_2_b_1": "high"}, "missing or no number"),
        ({"response_2_b_1": float("nan")}, "not finite"),
    ],
)
def test_personal_llm_with_wrong_rewards(tmp_path, change, message):
    rows = scored_rows()
    rows[3] |= change
    with pytest.raises(UserError, match=message):
        preference_files.read_personal_llm(json_lines(tmp_path / "x.jsonl", rows))
    with pytest.raises(UserError, match="response_1_NAME for each reward model"):
        preference_files.read_personal_llm(json_lines(tmp_path / "y.jsonl", [{"prompt": "p"}]))
