"""Made-up histories of users, in the files of PGraphRAG's gap and of LaMP."""

import json
import pathlib

import numpy as np

NUM_AUTHORS, NUM_PRODUCTS, WIDTH = 6, 7, 3


def write_reviews(directory, **changed):
    """Writes made-up reviews; `changed` replaces arrays, or leaves them out with None."""
    draw = np.random.default_rng(0)
    users = np.repeat(np.arange(NUM_AUTHORS), 10).astype(np.int16)
    size = len(users)
    reviews = {
        "user": users,
        "product": draw.integers(0, NUM_PRODUCTS, size).astype(np.int16),
        "rating": draw.integers(1, 6, size).astype(np.uint8),
    }
    codes = draw.integers(-127, 128, (2, size, WIDTH)).astype(np.int8)
    scale = np.full(size, 0.01, np.float32)
    encoded = {"text": codes[0], "title": codes[1], "text_scale": scale, "title_scale": scale}
    for name, arrays in (("gap", reviews), ("features_wordllama_gap", encoded)):
        kept = {key: changed.get(key, value) for key, value in arrays.items()}
        kept = {key: value for key, value in kept.items() if value is not None}
        np.savez_compressed(pathlib.Path(directory) / f"{name}.npz", **kept)
    return reviews, encoded


def write_json(path, content):
    """Writes a JSON file and returns its path."""
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_lamp(directory, users=5, documents=4):
    """Scores of reviews in the files of LaMP-3; each user's query is another review."""
    texts = [
        [f"word{user} text{number} text{number}" for number in range(documents)]
        for user in range(users)
    ]
    entries = [
        {
            "id": f"3{user}",
            "input": f"What is the score of the review? query{user}",
            "profile": [
                {"id": str(number), "text": text, "score": str(1 + (user + number) % 3)}
                for number, text in enumerate(texts[user])
            ],
        }
        for user in range(users)
    ]
    golds = [{"id": entry["id"], "output": str(1 + user % 3)} for user, entry in enumerate(entries)]
    directory.mkdir(exist_ok=True)
    write_json(directory / "dev_questions.json", entries)
    write_json(directory / "dev_outputs.json", {"task": "LaMP_3", "golds": golds})
    return entries, texts
