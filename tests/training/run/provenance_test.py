"""The provenance of a result."""

import datetime
import subprocess
import sys

import jax
import pytest

from pfljax.training.run import provenance


def git(root, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-qm", "first")
    provenance.commit.cache_clear()
    yield tmp_path
    provenance.commit.cache_clear()


def test_the_commit_of_a_checkout_and_its_changes(checkout):
    clean = provenance.commit(checkout)
    assert len(clean) == 40 and int(clean, 16) >= 0
    (checkout / "code.py").write_text("2")
    assert provenance.commit(checkout) == clean  # that of the running code
    provenance.commit.cache_clear()
    assert provenance.commit(checkout) == f"{clean}-dirty"
    git(checkout, "commit", "-qam", "second")
    provenance.commit.cache_clear()
    (checkout / "results").mkdir()
    (checkout / "results" / "untracked").write_text("")
    assert provenance.commit(checkout) not in (clean, f"{clean}-dirty", None)
    assert not provenance.commit(checkout).endswith("-dirty")


def test_outside_a_checkout_there_is_no_commit(checkout, monkeypatch):
    """Not even that of a checkout above, such as a project that contains the environment."""
    (checkout / "site-packages").mkdir()
    assert provenance.commit(checkout / "site-packages") is None
    monkeypatch.setenv("PATH", "")
    assert provenance.commit(checkout) is None


def test_an_empty_checkout_has_no_commit(tmp_path):
    git(tmp_path, "init", "-q")
    assert provenance.commit(tmp_path) is None


@pytest.mark.parametrize(
    "words, shown",
    [
        (["python", "experiments/train.py", "--resume"], "python experiments/train.py --resume"),
        (["/a/b/python3", "/a/b/pfljax", "sweep", "--x=/c/d"], "python3 pfljax sweep --x=/c/d"),
        (["/a/python", "-O", "/b/study.py", "/c"], "python -O study.py /c"),
        (["python"], "python"),
    ],
)
def test_the_command_as_typed_without_directories_of_programs(words, shown):
    assert provenance.command(words) == shown


def test_an_interactive_session_has_no_command(monkeypatch):
    assert provenance.command()
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert provenance.command() is None


def test_what_is_collected():
    found = provenance.collect(jax.devices()[:2])
    assert set(found) == {"commit", "versions", "command", "devices", "date"}
    names = {"pfljax", "python", "jax", "numpy", "optax", "flax"}
    assert set(found["versions"]) == names and all(found["versions"].values())
    assert found["versions"]["jax"] == jax.__version__
    assert found["devices"] == {"kind": "cpu", "count": 2}
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(found["date"])
    assert datetime.timedelta() <= age < datetime.timedelta(minutes=1)
