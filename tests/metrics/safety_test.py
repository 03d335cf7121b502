"""Safety and utility over identities, against values computed by hand."""

import math

import numpy as np
import pytest

from pfljax.errors import UserError
from pfljax.metrics.safety import safety_utility

CORRECT = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], bool)
UNSAFE = np.array([[0, 0], [1, 0], [1, 1]])


def test_values_by_hand():
    found = safety_utility(CORRECT, UNSAFE)
    assert found.utility.tolist() == [1, 0.5, 0.75] and found.safety.tolist() == [1, 0.5, 0]
    # Deviations of the utility: 1/4, -1/4, 0; of the safety: 1/2, 0, -1/2.
    assert math.isclose(found.utility_bias, math.sqrt((1 / 16 + 1 / 16) / 3))
    assert math.isclose(found.safety_bias, math.sqrt((1 / 4 + 1 / 4) / 3))
    assert math.isclose(found.bias, math.sqrt((1 / 8 + 1 / 2) / 3))


def test_an_identity_that_changes_nothing_has_no_bias():
    found = safety_utility(np.tile(CORRECT[1], (5, 1)), np.tile(UNSAFE[1], (5, 1)))
    assert found.bias == found.utility_bias == found.safety_bias == 0


@pytest.mark.parametrize(
    "correct, unsafe, message",
    [
        (CORRECT[:2], UNSAFE, "correct has 2 identities and unsafe 3"),
        (CORRECT[0], UNSAFE, r"correct has the shape \(4,\)"),
        (CORRECT, UNSAFE[:, :0], r"unsafe has the shape \(3, 0\)"),
        (CORRECT, 5 * UNSAFE, "unsafe has values other than 0 and 1"),
        (np.where(CORRECT, 1.0, np.nan), UNSAFE, "correct has values other than 0 and 1"),
        (CORRECT, UNSAFE.astype(str), "unsafe has values other than 0 and 1"),
    ],
)
def test_what_the_user_has_to_change(correct, unsafe, message):
    with pytest.raises(UserError, match=message):
        safety_utility(correct, unsafe)
