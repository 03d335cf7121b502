"""Made-up ratings of texts in the files of the annotators' data sets."""

import pathlib

import numpy as np

NUM_USERS, NUM_ITEMS, WIDTH = 6, 20, 3
EMOTIONS = 10


def arrays(name, seed=0):
    """The content of the two files of a data set: every user rates 12 of 20 texts."""
    draw = np.random.default_rng(seed)
    items = np.concatenate(
        [np.sort(draw.choice(NUM_ITEMS, 12, replace=False)) for _ in range(NUM_USERS)]
    )
    users = np.repeat(np.arange(NUM_USERS), 12)
    features = draw.normal(size=(NUM_ITEMS, WIDTH))
    codes = np.rint(40 * features).clip(-127, 127).astype(np.int8)
    scores = features[items, 0] + np.linspace(-1, 1, NUM_USERS)[users] > 0
    labels = {
        "md_agreement": scores.astype(np.uint8),
        "popquorn": np.where(scores, draw.integers(2, 6, len(users)), 1).astype(np.uint8),
        "studemo": np.stack([scores.astype(np.int8)] * EMOTIONS, axis=1),
    }[name]
    texts = [f"text {number}".encode() for number in range(NUM_ITEMS)]
    ratings = {
        "user": users.astype(np.int16),
        "item": items.astype(np.int16),
        "label": labels,
        "user_offsets": 12 * np.arange(NUM_USERS + 1, dtype=np.int32),
        "text": np.frombuffer(b"".join(texts), np.uint8),
        "text_offsets": np.cumsum([0, *map(len, texts)]).astype(np.int32),
    }
    if name == "popquorn":
        for attribute in ("gender", "race", "age", "education", "occupation"):
            ratings[f"user_{attribute}"] = (np.arange(NUM_USERS) % 2).astype(np.uint8)
    return ratings, {"text": codes, "text_scale": np.full(NUM_ITEMS, 0.025, np.float32)}


def write(directory, name, features="minilm", **changed):
    """Writes both files; `changed` replaces arrays of the ratings, or leaves them out with None."""
    ratings, encoded = arrays(name)
    ratings = {key: value for key, value in (ratings | changed).items() if value is not None}
    directory = pathlib.Path(directory)
    file = "popquorn_offensiveness" if name == "popquorn" else name
    np.savez_compressed(directory / f"{file}.npz", **ratings)
    np.savez_compressed(directory / f"features_{features}.npz", **encoded)
    return ratings, encoded
