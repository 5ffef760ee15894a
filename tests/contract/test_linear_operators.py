"""Every operator keeps the contract of a linear operator, and no public operator lacks a case."""

import pytest
import torch

import operators
from operators.linear_operator import LinearOperator
from tests.cases import OPERATOR_CASES, public_subclasses, without_case
from tests.contract.contracts import CONTRACTS, check_device


@pytest.mark.parametrize("case", OPERATOR_CASES)
@pytest.mark.parametrize("contract", CONTRACTS)
def test_operator_keeps_contract(contract, case, generator):
    CONTRACTS[contract](OPERATOR_CASES[case](), generator)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", OPERATOR_CASES)
def test_operator_does_the_same_on_a_gpu(case, generator):
    check_device(OPERATOR_CASES[case](), generator)


def test_every_public_operator_has_a_case():
    assert without_case(public_subclasses(operators, LinearOperator), OPERATOR_CASES) == []


def test_an_operator_without_case_is_found():
    cases = {name: factory for name, factory in OPERATOR_CASES.items() if not name.startswith("pad_")}
    assert without_case(public_subclasses(operators, LinearOperator), cases) == ["operators.elementary.Pad"]
