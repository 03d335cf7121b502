"""Damaged work directories: the numbers of an undamaged run, or one sentence, and never others."""

import collections
import contextlib
import random
import shutil
import signal
import sys

import jax
import numpy as np
import pytest
from runs import assert_same_run, config

from pfljax.engine.clients.on_device import to_host
from pfljax.errors import UserError
from pfljax.training.run import checkpoint, loop, reopen, workdir
from pfljax.training.run.checkpoint import Checkpoints
from pfljax.training.study import experiment

# Reads that Orbax abandons may end at any later moment, in a thread that complains of it.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::pytest.PytestUnhandledThreadExceptionWarning",
)

_SECONDS = 120  # after which a resumption counts as a hang


def flip_a_bit(path, chance):
    content = bytearray(path.read_bytes())
    if content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def truncate(path, chance):
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size + 1)])


def zero(path, chance):
    path.write_bytes(bytes(path.stat().st_size))


def remove(path, chance):
    path.unlink()


class Hang(Exception):
    """A resumption that took too long."""


def _hang(*_):
    raise Hang


SETTINGS = {
    "device": {},
    "host": {"engine.residence": "host"},
    "best": {"keep_best": True, "eval_every": 1, "client_optimizer.learning_rate": 1.0},
}


class Damages:
    """Runs of one kind: from beginning to end, interrupted, damaged."""

    def __init__(self, kind, place):
        self.kind, settings = kind, SETTINGS[kind]
        self.built = experiment.build(config(**settings))
        self.straight = place / "straight", loop.run(self.built, place / "straight"), None
        # After three of six rounds, with the checkpoints of rounds 2 and 3, and finished.
        self.begun = place / "begun"
        short = self.built._replace(config=config(**{**settings, "rounds": 3}))
        loop.run(short, self.begun)
        self.like = self.built.programs.init(self.built.examples, jax.random.key(0))
        self.best = self.best_of(self.straight[0])

    def best_of(self, place):
        """Returns the state of the best round, if such runs keep it, as in checkpoints."""
        if not self.built.config.keep_best:
            return None
        with contextlib.closing(Checkpoints(place / checkpoint.BEST, None)) as checkpoints:
            restored = reopen.restore_best(self.built, place, checkpoints, self.like)
        return to_host(restored.state, self.built.dataset.num_clients)

    def resume(self, place, damage, seed):
        """Damages a copy of a directory, resumes it, and says what came of it."""
        chance = random.Random(seed)
        shutil.rmtree(place, ignore_errors=True)
        source = chance.choice([self.begun, self.straight[0]])
        shutil.copytree(source, place)
        files = sorted(path for path in place.rglob("*") if path.is_file())
        damage(chance.choice(files), chance)
        before = signal.signal(signal.SIGALRM, _hang)
        signal.alarm(_SECONDS)
        try:
            workdir.clients_per_chunk(place)
            workdir.is_finished(place, self.built.config)
            result = loop.run(self.built, place, resume=True)
            best = self.best_of(place)
        except UserError as error:
            assert str(error).count("\n") == 0
            return "one sentence"
        except Hang:
            return "hang"
        except Exception:
            return "traceback"
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        try:
            assert_same_run(place, result, self.straight)
            jax.tree.map(np.testing.assert_array_equal, best, self.best)
        except AssertionError:
            return "other numbers"
        return "same numbers"


@pytest.fixture(scope="module", params=SETTINGS)
def damages(request, tmp_path_factory):
    return Damages(request.param, tmp_path_factory.mktemp(request.param))


def count(damages, place, damage, seeds):
    return collections.Counter(damages.resume(place, damage, seed) for seed in seeds)


@pytest.fixture(autouse=True)
def hooks(monkeypatch):
    for name in ("unraisablehook", "excepthook"):  # which checkpoints replace
        monkeypatch.setattr(sys, name, getattr(sys, name))


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, zero, remove])
def test_damage_changes_no_number(damages, tmp_path, damage):
    found = count(damages, tmp_path / "copy", damage, range(4))
    assert set(found) <= {"same numbers", "one sentence"}, found


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip_a_bit, truncate, zero, remove])
def test_much_damage_changes_no_number(damages, tmp_path, damage, capsys):
    tries = 150 if damage is flip_a_bit else 40
    found = count(damages, tmp_path / "copy", damage, range(100, 100 + tries))
    with capsys.disabled():
        print(f"\n{damage.__name__}, {damages.kind}: {dict(found)}")
    assert set(found) <= {"same numbers", "one sentence"}, found
    assert found["same numbers"] > tries * 0.9
