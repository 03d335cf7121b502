"""The published JSON files of LaMP and LongLaMP: queries of users with the users' own documents.

`read_lamp` and `read_long_lamp` return all texts. `load_lamp` makes a data set of the two tasks of
LaMP whose outputs are classes: a user is a client, the documents of the profile are the client's
first examples, the query is its last, and inputs are counts of hashed words.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pfljax.data import checks, reading
from pfljax.data.examples import Examples
from pfljax.data.sources import files
from pfljax.data.sources.hashed_words import count_hashed_words
from pfljax.errors import UserError

_AGAIN = files.FETCH_AGAIN


class Form(NamedTuple):
    """The form of a document in the profile of a task.

    Attributes:
      text: The names of the fields with the text of a document.
      label: The name of the field with what a model writes or predicts for a document; empty if the
        profile has none.
    """

    text: tuple[str, ...]
    label: str = ""


LAMP = {
    "LaMP_1": Form(("title", "abstract")),
    "LaMP_2": Form(("description",), "tag"),
    "LaMP_3": Form(("text",), "score"),
    "LaMP_4": Form(("text",), "title"),
    "LaMP_5": Form(("abstract",), "title"),
    "LaMP_6": Form(("text",), "title"),
    "LaMP_7": Form(("text",)),
}
# The tasks whose outputs are classes, for `load_lamp`.
CLASSIFICATION = ("LaMP_2", "LaMP_3")
# In LongLaMP, a task also has its own name of the field that identifies the user.
LONG_LAMP = {
    "abstract_generation": ("name", Form(("title",), "abstract")),
    "product_review": ("reviewerId", Form(("overall", "summary", "description"), "reviewText")),
    "topic_writing": ("author", Form(("summary",), "content")),
}


class Document(NamedTuple):
    """A document of a user's profile.

    Attributes:
      text: What it says.
      label: What the user wrote or chose for it; None if the profile has none.
    """

    text: str
    label: str | None


class Query(NamedTuple):
    """A query of a user, with the user's profile.

    Attributes:
      user: The identity of the user: in LaMP that of the query, as each query has its own profile.
      input: The text of the query, a whole instruction.
      output: The published output; None in test files, which have none.
      profile: The user's documents, in the order of the file.
    """

    user: str
    input: str
    output: str | None
    profile: tuple[Document, ...]


def read_lamp(questions: str | Path, task: str, outputs: str | Path = "") -> list[Query]:
    """Reads the queries of a task of LaMP.

    Args:
      questions: The file of queries, such as `dev_questions.json`.
      task: The task, one of `LAMP`, such as 'LaMP_3'.
      outputs: The file of outputs, such as `dev_outputs.json`; empty for none.

    Raises:
      UserError: A file is missing or damaged, or is not of this task.

    References:
      Salemi, Mysore, Bendersky, Zamani, "LaMP: When Large Language Models Meet Personalization",
      2023, https://arxiv.org/abs/2304.11406.
    """
    checks.choice("task", task, LAMP)
    found, golds = _read_json(questions), {}
    if outputs:
        content = _read_json(outputs)
        if not isinstance(content, dict) or content.get("task") != task:
            raise UserError(f"{outputs} has no outputs of {task}: pass the outputs of that task.")
        golds = {
            _text(gold, "id", outputs): _text(gold, "output", outputs)
            for gold in _list(content.get("golds"), f"{outputs} has no golds")
        }
    queries = []
    for entry in _list(found, f"{questions} is no list of queries"):
        user = _text(entry, "id", questions)
        if outputs and user not in golds:
            raise UserError(f"{outputs} has no output of the query {user!r}: {_AGAIN}.")
        query = _text(entry, "input", questions)
        queries.append(Query(user, query, golds.get(user), _profile(entry, LAMP[task], questions)))
    return queries


def read_long_lamp(path: str | Path, task: str) -> list[Query]:
    """Reads the queries of a task of LongLaMP; the setting (users or time) is that of the file.

    Args:
      path: A file with one JSON object in each line, or one JSON list.
      task: The task, one of `LONG_LAMP`, such as 'product_review'.

    Raises:
      UserError: The file is missing or damaged, or is not of this task.

    References:
      Kumar et al., "LongLaMP: A Benchmark for Personalized Long-form Text Generation", 2024,
      https://arxiv.org/abs/2407.11016.
    """
    checks.choice("task", task, LONG_LAMP)
    identity, form = LONG_LAMP[task]
    return [
        Query(
            _text(entry, identity, path),
            _text(entry, "input", path),
            _text(entry, "output", path),
            _profile(entry, form, path),
        )
        for entry in _list(_read_json(path), f"{path} is no list of queries")
    ]


def load_lamp(
    data_dir: str = "", *, task: str = "LaMP_3", split: str = "dev", words: int = 1024
) -> Examples:
    """Returns the documents of users with their labels, and each user's query as the last one.

    Args:
      data_dir: A directory with `dev_questions.json` and `dev_outputs.json`, or with a directory of
        the name of the task that has them.
      task: 'LaMP_2' (tags of films) or 'LaMP_3' (scores of reviews).
      split: The split of the publication, 'train' or 'dev'.
      words: Number of hashed words.

    Returns:
      Examples in order of time, so that `data.split=temporal` tests the query and the last
      documents of a user, and held-out clients are new users. Inputs are `[n, words]` float32.

    Raises:
      UserError: A file is missing or damaged, an option is invalid, or an output is no label.
    """
    checks.choice("data.options.lamp.task", task, CLASSIFICATION)
    checks.choice("data.options.lamp.split", split, ("train", "dev"))
    checks.whole("data.options.lamp.words", words, 2, 2**20)
    searched = files.directories(data_dir, (task,))
    names = [f"{split}_questions.json", f"{split}_outputs.json"]
    paths = files.find(searched, names)
    if paths is None:
        raise files.absent("lamp", searched, f"put {' and '.join(names)} of {task} there")
    queries = read_lamp(paths[0], task, paths[1])
    texts, labels, owners = [], [], []
    for number, query in enumerate(queries):
        documents = [*query.profile, Document(query.input, query.output)]
        texts += [document.text for document in documents]
        labels += [document.label for document in documents]
        owners += [number] * len(documents)
    names = sorted(set(labels))
    codes = {name: code for code, name in enumerate(names)}
    return Examples(
        name="lamp",
        inputs=count_hashed_words(texts, words),
        targets=np.array([codes[label] for label in labels], np.int32),
        num_classes=len(names),
        owners=np.array(owners, np.int32),
        time_gap=0,
        class_names=tuple(names),
        owner_names=tuple(query.user for query in queries),
    )


def _read_json(path: str | Path) -> Any:
    """Returns the content of a JSON file, or the list of the lines of a file of JSON lines."""
    path = Path(path).expanduser()
    text = files.read_text(path)
    try:
        try:
            return reading.parse_json(text)
        except json.JSONDecodeError:
            return [reading.parse_json(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): {_AGAIN}.") from error


def _list(found: Any, fault: str) -> list[dict[str, Any]]:
    """Returns a list of JSON objects, of which there is at least one."""
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise UserError(f"{fault}: {_AGAIN}.")
    if not found:
        raise UserError(f"{fault}, as it is empty: {_AGAIN}.")
    return found


def _text(entry: dict[str, Any], field: str, path: str | Path) -> str:
    """Returns a field of a JSON object as text; numbers are written out."""
    value = entry.get(field)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{path} has an entry without {field!r}: pass a file of the task.")
    return str(value)


def _profile(entry: dict[str, Any], form: Form, path: str | Path) -> tuple[Document, ...]:
    documents = entry.get("profile")
    if documents == []:
        return ()
    return tuple(
        Document(
            " ".join(_text(document, field, path) for field in form.text),
            _text(document, form.label, path) if form.label else None,
        )
        for document in _list(documents, f"{path} has an entry without a profile")
    )
