"""Hounsfield units, counts and line integrals: scales, distributions, and what happens at zero."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datasets.physics import (
    MU_WATER,
    attenuation_to_hu,
    hu_to_attenuation,
    kullback_leibler_background,
    line_integrals,
    poisson_counts,
    transmission_counts,
    transmission_weights,
    water_attenuation,
)


def test_water_and_air() -> None:
    hu = torch.tensor([0.0, -1000.0, 1000.0], dtype=torch.float64)
    torch.testing.assert_close(hu_to_attenuation(hu), torch.tensor([0.02, 0.0, 0.04], dtype=torch.float64))
    with_air = hu_to_attenuation(hu, 0.02, 0.00002)
    torch.testing.assert_close(with_air[:2], torch.tensor([0.02, 0.00002], dtype=torch.float64))
    # the scale of LoDoPaB-CT: 81.35858 / m at 3071 HU
    assert hu_to_attenuation(torch.tensor(3071.0), 0.02, 0.00002).item() == pytest.approx(0.08135858, rel=1e-6)


@given(mu_water=st.floats(0.001, 1), ratio=st.floats(0, 0.9), hu=st.floats(-1024, 3071))
def test_hounsfield_units_there_and_back(mu_water: float, ratio: float, hu: float) -> None:
    mu = hu_to_attenuation(torch.tensor(hu, dtype=torch.float64), mu_water, ratio * mu_water)
    assert attenuation_to_hu(mu, mu_water, ratio * mu_water).item() == pytest.approx(hu, abs=1e-9)


def test_water_of_the_table() -> None:
    assert water_attenuation(60) == pytest.approx(0.02059)
    assert water_attenuation(65) == pytest.approx(MU_WATER, rel=0.005)
    assert water_attenuation(70) < water_attenuation(69)
    with pytest.raises(ValueError, match="energy is 511 keV; valid are 20 to 150 keV"):
        water_attenuation(511)


def test_counts_have_their_distribution() -> None:
    z = torch.full((200, 200), 2.0, dtype=torch.float64)
    counts = transmission_counts(z, 1000, seed=1, index=0, background=10.0)
    expected = 1000 * math.exp(-2) + 10
    assert counts.mean().item() == pytest.approx(expected, rel=5 / math.sqrt(expected * z.numel()))
    assert counts.var().item() == pytest.approx(expected, rel=0.03)
    torch.testing.assert_close(counts, counts.round())


def test_counts_belong_to_their_picture() -> None:
    z = torch.rand(8, 9, dtype=torch.float64)
    first = transmission_counts(z, 50, seed=3, index=4)
    torch.testing.assert_close(transmission_counts(z, 50, seed=3, index=4), first, rtol=0, atol=0)
    assert (transmission_counts(z, 50, seed=3, index=5) != first).any()
    assert (transmission_counts(z, 50, seed=2, index=4) != first).any()
    single = transmission_counts(z.float().double().float(), 50, seed=3, index=4)
    torch.testing.assert_close(single, transmission_counts(z.float().double(), 50, seed=3, index=4).float())


def test_line_integrals_invert_transmission() -> None:
    z = torch.linspace(0, 4, 30, dtype=torch.float64)
    torch.testing.assert_close(line_integrals(1e4 * torch.exp(-z), 1e4), z)
    torch.testing.assert_close(line_integrals(1e4 * torch.exp(-z) + 7, 1e4, background=7.0), z)
    flats = torch.linspace(1e3, 1e4, 30, dtype=torch.float64)
    torch.testing.assert_close(line_integrals(flats * torch.exp(-z), flats), z)


def test_zero_counts_are_finite_and_have_no_weight() -> None:
    counts = torch.tensor([0.0, 1.0, 100.0], dtype=torch.float64)
    z = line_integrals(counts, 1000)
    assert z[0].item() == pytest.approx(math.log(2000))
    assert z.isfinite().all()
    torch.testing.assert_close(transmission_weights(counts), counts)
    with_background = transmission_weights(counts, background=5.0)
    torch.testing.assert_close(with_background, torch.tensor([0.0, 0.0, 95.0**2 / 100], dtype=torch.float64))


@pytest.mark.parametrize("background", [0.0, 40.0])
def test_weights_are_inverse_variances(background: float) -> None:
    z = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)[:, None].expand(3, 20000).contiguous()
    counts = transmission_counts(z, 5000, seed=0, index=0, background=background)
    variance = line_integrals(counts, 5000, background).var(1)
    weights = transmission_weights(counts, background).mean(1)
    torch.testing.assert_close(weights * variance, torch.ones(3, dtype=torch.float64), rtol=0.05, atol=0)


def test_background_for_kullback_leibler() -> None:
    assert kullback_leibler_background(torch.tensor([0.0, 200.0]), 0.02) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="no count is positive"):
        kullback_leibler_background(torch.zeros(3))
    with pytest.raises(ValueError, match="fraction is 0"):
        kullback_leibler_background(torch.ones(3), 0.0)


@pytest.mark.parametrize("photons", [0.0, -1.0, math.nan, math.inf])
def test_photons_out_of_range(photons: float) -> None:
    with pytest.raises(ValueError, match="photons per ray are"):
        transmission_counts(torch.zeros(2), photons, 0, 0)
    with pytest.raises(ValueError, match="photons per ray are"):
        line_integrals(torch.zeros(2), photons)


def test_other_values_out_of_range() -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        transmission_counts(torch.tensor([0.0, math.nan]), 10, 0, 0)
    with pytest.raises(ValueError, match="they must be finite, and 0 to"):
        transmission_counts(torch.tensor([-1000.0]), 10, 0, 0)
    with pytest.raises(ValueError, match="they must be finite, and 0 to"):
        poisson_counts(torch.tensor([-1.0]), 0, 0)
    with pytest.raises(ValueError, match="background is -1"):
        transmission_weights(torch.ones(2), -1.0)
    for counts in (torch.tensor([-1.0]), torch.tensor([])):
        with pytest.raises(ValueError, match="counts must be at least 0"):
            line_integrals(counts, 10)
    with pytest.raises(ValueError, match="NaN or infinite"):
        transmission_weights(torch.tensor([math.nan]))
    with pytest.raises(ValueError, match="mu_water is 0 and mu_air 0"):
        hu_to_attenuation(torch.zeros(1), 0, 0)
    with pytest.raises(ValueError, match="0 <= mu_air < mu_water"):
        attenuation_to_hu(torch.zeros(1), 0.02, 0.03)
