"""Runs pytest on the files named as arguments; Bazel starts tests through it."""

import os
import sys

import pytest

if __name__ == "__main__":
    # In Bazel's sandbox nothing else can be written; JAX's compilation cache goes here.
    os.environ["XDG_CACHE_HOME"] = os.environ["TEST_TMPDIR"]
    sys.exit(pytest.main(["-p", "no:cacheprovider", "-n", "0", *sys.argv[1:]]))
