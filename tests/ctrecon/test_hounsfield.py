import pytest
import torch

from ctrecon.hounsfield import check_mu_water, to_hu, to_mu


def test_air_is_minus_thousand_and_water_is_zero() -> None:
    mu = torch.tensor([0.0, 0.0192, 0.0384], dtype=torch.float64)
    torch.testing.assert_close(to_hu(mu, 0.0192), torch.tensor([-1000.0, 0.0, 1000.0], dtype=torch.float64))


def test_one_conversion_undoes_the_other(generator: torch.Generator) -> None:
    mu = torch.rand(2, 3, 4, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(to_mu(to_hu(mu, 0.02), 0.02), mu, rtol=1e-12, atol=1e-12)


def test_the_precision_of_the_image_is_kept() -> None:
    assert to_hu(torch.zeros(2), 0.02).dtype == torch.float32
    assert to_mu(torch.zeros(2, dtype=torch.float64), 0.02).dtype == torch.float64


@pytest.mark.parametrize("mu_water", [0.192, 0.0, -0.02, 19.2, float("nan")])
def test_an_implausible_attenuation_of_water_is_refused_with_the_usual_cause(mu_water: float) -> None:
    for convert in (to_hu, to_mu):
        with pytest.raises(ValueError, match=r"per mm; expected about 0.02\. A value near 0.2 is per cm"):
            convert(torch.zeros(1), mu_water)


def test_plausible_values_come_back() -> None:
    assert check_mu_water(0.0192) == 0.0192
