"""The contract suite bites: every planted bug is caught, and the operator without the bug is not."""

import pytest

from tests.contract.contracts import CONTRACTS
from tests.contract.planted_bugs import PLANTED_BUGS, catches


@pytest.mark.parametrize("name", PLANTED_BUGS)
def test_planted_bug_is_caught(name):
    bug = PLANTED_BUGS[name]
    assert catches(bug.contract, bug.planted())
    assert not catches(bug.contract, bug.healthy())


def test_every_contract_must_catch_a_bug():
    assert {bug.contract for bug in PLANTED_BUGS.values()} == set(CONTRACTS)
