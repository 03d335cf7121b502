"""The store of personas: versions, updates that are refused, and the packed files."""

import json

import numpy as np
import pytest

from pfljax.data import personas
from pfljax.data.personas import PersonaStore
from pfljax.errors import UserError

PERSONA = {
    "Demographics": {"Age": 30},
    "Personality": {"Values": ["a", "b"]},
    "Pattern": {"Usage": "None"},
    "Preference": {"Styles": "None", "Formats": "lists"},
}


def store():
    return personas.add(PersonaStore(), "ann", PERSONA)


def test_versions_are_kept():
    first = store()
    second = personas.update(first, "ann", {"Preference": {"Styles": "short"}}, session=3)
    third = personas.update(second, "ann", {"Pattern": {"Usage": "daily"}}, session=6)
    assert personas.latest(first, "ann") == PERSONA
    sessions = [personas.at(third, "ann", session) for session in (0, 2, 3, 5, 6, 99)]
    styles = [persona["Preference"]["Styles"] for persona in sessions]
    assert styles == ["None", "None", "short", "short", "short", "short"]
    assert [persona["Pattern"]["Usage"] for persona in sessions[3:]] == ["None", "daily", "daily"]
    assert personas.changed_fields(PERSONA, sessions[-1]) == [
        ("Pattern", "Usage"),
        ("Preference", "Styles"),
    ]
    fractions = [personas.known_fraction(persona) for persona in (PERSONA, *sessions[3:5])]
    assert fractions == [0.6, 0.8, 1.0]
    assert personas.revert(third, "ann") == second
    assert personas.revert(first, "ann") == first


def test_an_update_without_a_change_is_no_version():
    same = personas.update(store(), "ann", {"Preference": {"Styles": "None"}}, session=3)
    assert same == store() and len(same.versions["ann"]) == 1


def test_what_a_user_passed_is_not_changed():
    given = {"Preference": {"Styles": "None"}}
    kept = personas.add(PersonaStore(), "bob", given)
    given["Preference"]["Styles"] = "loud"
    assert personas.latest(kept, "bob")["Preference"]["Styles"] == "None"


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: personas.add(store(), "ann", PERSONA), "change it with update"),
        (lambda: personas.latest(store(), "bob"), "no persona of 'bob'"),
        (lambda: personas.update(store(), "ann", {"Taste": {"x": 1}}, session=1), "Taste.x"),
        (lambda: personas.update(store(), "ann", {"Pattern": {"x": 1}}, session=1), "Pattern.x"),
        (lambda: personas.at(store(), "ann", -1), "at least 0"),
        (lambda: personas.from_json("[1]"), "no store of personas"),
        (lambda: personas.from_json('{"ann": [[0]]}'), "no store of personas"),
        (lambda: personas.from_json('{"ann": []}'), "no version of 'ann'"),
    ],
)
def test_mistakes_are_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_versions_are_in_order_of_sessions():
    changed = personas.update(store(), "ann", {"Pattern": {"Usage": "daily"}}, session=6)
    with pytest.raises(UserError, match="a version of session 6"):
        personas.update(changed, "ann", {"Pattern": {"Usage": "weekly"}}, session=3)


def test_a_store_is_written_and_read():
    changed = personas.update(store(), "ann", {"Pattern": {"Usage": "täglich"}}, session=3)
    assert personas.from_json(personas.to_json(changed)) == changed


def test_personas_are_updated_every_three_sessions():
    assert [session for session in range(8) if personas.is_due(session)] == [3, 6]


def write(directory, found):
    packed = [json.dumps(each, ensure_ascii=False).encode() for each in found]
    np.savez_compressed(
        directory / "ai_persona.npz",
        persona_json=np.frombuffer(b"".join(packed), np.uint8),
        persona_offsets=np.cumsum([0, *map(len, packed)]).astype(np.int32),
    )


def test_packed_personas(tmp_path):
    scene = {"scene_type": "travel", "personalized_query": "q", "neutralized_query": "n"}
    write(tmp_path, [PERSONA | {"scenes": [scene, scene]}, PERSONA])
    found, scenes = personas.read_ai_persona(str(tmp_path))
    assert personas.latest(found, "persona 1") == PERSONA
    assert scenes == {"persona 0": [scene, scene], "persona 1": []}
    write(tmp_path, [PERSONA, {"Demographics": {}}])
    with pytest.raises(UserError, match="at number 1"):
        personas.read_ai_persona(str(tmp_path))
    (tmp_path / "ai_persona.npz").unlink()
    with pytest.raises(UserError, match="put ai_persona.npz there"):
        personas.read_ai_persona(str(tmp_path))
