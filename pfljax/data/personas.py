"""Personas: what is known of a user in words, in fields that change over time, with all versions.

A persona is a dictionary of sections with fields, such as {'Preference': {'Preferred_Styles':
'short answers'}}. After some sessions with the user, fields get new contents; the store keeps each
version, so that a score can be reported against the number of sessions, and an update be undone.

References:
  Wang, Tao, Fang, Wang, Wang, Jiang, Zhou, "AI PERSONA: Towards Life-long Personalization of
  LLMs", 2024, https://arxiv.org/abs/2412.13103.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from pfljax.data import validate_arrays
from pfljax.data.sources import files
from pfljax.errors import UserError

# {section: {field: content}}
Persona = Mapping[str, Mapping[str, Any]]

SECTIONS = ("Demographics", "Personality", "Pattern", "Preference")
# The content of a field that is not known yet, in the published files.
UNKNOWN = "None"
_FOLDER, _FILE = "ai_persona", "ai_persona.npz"


class Version(NamedTuple):
    """A persona as it was after some sessions.

    Attributes:
      session: Number of sessions with the user before this version.
      persona: The persona.
    """

    session: int
    persona: Persona


class PersonaStore(NamedTuple):
    """The personas of users with their versions; the functions below return a changed copy.

    Attributes:
      versions: `{user: versions}`, the oldest version first.

    Example:
      >>> store = add(PersonaStore(), 'ann', {'Preference': {'Styles': 'None'}})
      >>> store = update(store, 'ann', {'Preference': {'Styles': 'short'}}, session=3)
      >>> latest(store, 'ann')['Preference']['Styles'], at(store, 'ann', 2)['Preference']['Styles']
      ('short', 'None')
    """

    versions: Mapping[str, tuple[Version, ...]] = MappingProxyType({})


def add(store: PersonaStore, user: str, persona: Persona) -> PersonaStore:
    """Returns a store with a new user, whose persona is known before the first session.

    Raises:
      UserError: The store has the user already.
    """
    if user in store.versions:
        raise UserError(f"The store has a persona of {user!r}: change it with update.")
    return _with(store, user, (Version(0, _copy(persona)),))


def update(store: PersonaStore, user: str, changes: Persona, *, session: int) -> PersonaStore:
    """Returns a store with a new version of a persona; without changes, the same store.

    Args:
      store: The store.
      user: The user.
      changes: The fields that change, by section, with their new contents.
      session: Number of sessions with the user so far.

    Raises:
      UserError: The user, a section or a field is unknown, or the session is before the last one.
    """
    known = _versions(store, user)
    newest = known[-1]
    if session < newest.session:
        raise UserError(
            f"The persona of {user!r} has a version of session {newest.session}: session must not "
            f"be {session}."
        )
    persona = _copy(newest.persona)
    for section, fields in changes.items():
        for field, content in fields.items():
            if field not in persona.get(section, {}):
                raise UserError(
                    f"The persona of {user!r} has no field {section}.{field}: add the user with "
                    "all fields, those that are not known yet too."
                )
            persona[section][field] = content
    if persona == newest.persona:
        return store
    return _with(store, user, (*known, Version(session, persona)))


def latest(store: PersonaStore, user: str) -> Persona:
    """Returns the newest version of a user's persona."""
    return _versions(store, user)[-1].persona


def at(store: PersonaStore, user: str, session: int) -> Persona:
    """Returns a user's persona as it was after a number of sessions."""
    known = [version for version in _versions(store, user) if version.session <= session]
    if not known:
        raise UserError(f"session is {session}; it must be at least 0.")
    return known[-1].persona


def revert(store: PersonaStore, user: str) -> PersonaStore:
    """Returns a store without the newest version of a user's persona; the first one remains."""
    known = _versions(store, user)
    return _with(store, user, known[: max(len(known) - 1, 1)])


def changed_fields(before: Persona, after: Persona) -> list[tuple[str, str]]:
    """Returns the sections and fields in which two versions of a persona differ."""
    return [
        (section, field)
        for section, fields in after.items()
        for field, content in fields.items()
        if before.get(section, {}).get(field) != content
    ]


def known_fraction(persona: Persona) -> float:
    """Returns the fraction of the fields of a persona that are known."""
    contents = [content for fields in persona.values() for content in fields.values()]
    return sum(content != UNKNOWN for content in contents) / max(len(contents), 1)


def is_due(session: int, every: int = 3) -> bool:
    """Whether a persona is updated after this session; in AI PERSONA, after every third one."""
    return session > 0 and session % every == 0


def to_json(store: PersonaStore) -> str:
    """Returns a store as text, which `from_json` reads."""
    return json.dumps(store.versions | {}, ensure_ascii=False)


def from_json(text: str) -> PersonaStore:
    """Returns the store that `to_json` wrote.

    Raises:
      UserError: The text is no such store.
    """
    try:
        found = {
            user: tuple(Version(int(session), _copy(persona)) for session, persona in versions)
            for user, versions in json.loads(text).items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"The text is no store of personas ({error}): write it again.") from error
    if empty := [user for user, versions in found.items() if not versions]:
        raise UserError(f"The text has no version of {empty[0]!r}: write it again.")
    return PersonaStore(found)


def read_ai_persona(data_dir: str) -> tuple[PersonaStore, dict[str, list[dict[str, str]]]]:
    """Reads personas in the packed form of AI PERSONA's published dictionaries.

    Args:
      data_dir: A directory with `ai_persona.npz`, or with a directory `ai_persona` of it.

    Returns:
      A store of the personas, of which the users are 'persona 0' and so on, and the scenes of each
      user: what kind of scene, and the query with and without traits of the persona.

    Raises:
      UserError: The file is missing or damaged.
    """
    searched = files.directories(data_dir, (_FOLDER,))
    paths = files.find(searched, [_FILE])
    if paths is None:
        raise files.absent(_FOLDER, searched, f"put {_FILE} there")
    (path,) = paths
    content, offsets = files.read_npz(path, "persona_json", "persona_offsets")
    offsets = validate_arrays.whole(
        path, offsets, "persona_offsets", least=0, remedy=files.FETCH_AGAIN
    )
    packed = validate_arrays.pixels(path, content, remedy=files.FETCH_AGAIN).tobytes()
    store, scenes = PersonaStore(), {}
    for number, (start, end) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        user = f"persona {number}"
        try:
            found = json.loads(packed[start:end])
            persona = {section: dict(found[section]) for section in SECTIONS}
            scenes[user] = [dict(scene) for scene in found.get("scenes", [])]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path} has no persona with {', '.join(SECTIONS)} at number {number}: "
                f"{files.FETCH_AGAIN}."
            ) from error
        store = add(store, user, persona)
    return store, scenes


def _versions(store: PersonaStore, user: str) -> tuple[Version, ...]:
    if user not in store.versions:
        raise UserError(f"The store has no persona of {user!r}: add it first.")
    return store.versions[user]


def _with(store: PersonaStore, user: str, versions: tuple[Version, ...]) -> PersonaStore:
    return PersonaStore(MappingProxyType({**store.versions, user: versions}))


def _copy(persona: Persona) -> dict[str, dict[str, Any]]:
    return {section: dict(fields) for section, fields in persona.items()}
