"""Physics of X-ray CT: Hounsfield units, attenuation in 1/mm, photon counts, and line integrals.

Conventions of the whole package
    * lengths are in mm, linear attenuation coefficients µ in 1/mm, so line integrals have no unit;
    * Hounsfield units: HU = 1000 (µ - µ_water) / (µ_water - µ_air), so that water is 0 and air -1000;
    * µ_water depends on the energy of the photons, which HU hide. The default 0.02 / mm belongs to about 65 keV, near
      the mean energy of a clinical spectrum of 120 kV, and is the value of LoDoPaB-CT (Leuschner et al., Scientific
      Data 8:109, 2021). ``water_attenuation`` gives the value at another energy.
    * The attenuation of air, 0.00002 / mm, is taken as 0 unless a data set (LoDoPaB-CT) says otherwise.

Transmission (Beer and Lambert): a ray with n0 photons and line integral z is measured as the count
c ~ Poisson(n0 exp(-z) + r), with r the expected background of scattered photons and dark current.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from datasets.noise import keyed_generator
from recon.errors import not_negative, positive

#: µ of water in 1/mm at about 65 keV
MU_WATER = 0.02

#: largest value of 12-bit CT pictures, and the usual upper end of the scale
MAX_HU = 3071.0
#: µ in 1/mm of a pixel of value 1: bone of 3071 HU
MU_UNIT = MU_WATER * (1 + MAX_HU / 1000)
#: lower end of the scale; what is below it is padding outside of the field of view
MIN_HU = -1024.0

#: The count that stands for all counts below it when a logarithm of photons is taken: half a photon.
MIN_COUNT = 0.5
#: The same relative to a flat field whose unit is unknown: half a step of a detector of 16 bits that air fills.
MIN_TRANSMISSION = 0.5 / 65535

# NumPy draws Poisson counts as 64-bit integers and refuses means near their end.
_MAX_COUNT = 1e15

# Mass attenuation coefficient of liquid water in cm^2/g, NIST, Tables of X-Ray Mass Attenuation Coefficients
# (Hubbell and Seltzer 1995, NISTIR 5632). With 1 g/cm^3 and 10 mm to the cm, a tenth of it is µ in 1/mm.
_WATER_KEV = (20.0, 30.0, 40.0, 50.0, 60.0, 80.0, 100.0, 150.0)
_WATER_CM2_PER_G = (0.8096, 0.3756, 0.2683, 0.2269, 0.2059, 0.1837, 0.1707, 0.1505)


def water_attenuation(energy: float) -> float:
    """µ of water in 1/mm for photons of ``energy`` keV, interpolated in the NIST table on logarithmic scales.

    Raises
    ------
    ValueError
        the energy is not within 20 to 150 keV.
    """
    if not _WATER_KEV[0] <= energy <= _WATER_KEV[-1]:
        raise ValueError(f"energy is {energy} keV; valid are {_WATER_KEV[0]:g} to {_WATER_KEV[-1]:g} keV")
    return float(np.exp(np.interp(math.log(energy), np.log(_WATER_KEV), np.log(_WATER_CM2_PER_G)))) / 10


def hu_to_attenuation(hu: Tensor, mu_water: float = MU_WATER, mu_air: float = 0.0) -> Tensor:
    """µ = HU (µ_water - µ_air) / 1000 + µ_water in 1/mm.

    Values below air (noise, padding at -1024 HU) give µ < 0; clamp them where attenuation has to be physical.

    Raises
    ------
    ValueError
        not 0 <= mu_air < mu_water < infinity.
    """
    _check_attenuations(mu_water, mu_air)
    return hu * ((mu_water - mu_air) / 1000) + mu_water


def attenuation_to_hu(mu: Tensor, mu_water: float = MU_WATER, mu_air: float = 0.0) -> Tensor:
    """HU = 1000 (µ - µ_water) / (µ_water - µ_air) of µ in 1/mm, the inverse of ``hu_to_attenuation``.

    Raises
    ------
    ValueError
        not 0 <= mu_air < mu_water < infinity.
    """
    _check_attenuations(mu_water, mu_air)
    return (mu - mu_water) * (1000 / (mu_water - mu_air))


def poisson_counts(expected: Tensor, seed: int, index: int) -> Tensor:
    """Counts c ~ Poisson(expected), fixed by (seed, index) and drawn in float64 whatever the type of ``expected``.

    Parameters
    ----------
    expected
        mean counts of one picture's data, without batch axis, at least 0.
    seed
        of the data set, 0 to 2^64 - 1.
    index
        of the picture in the data set.

    Returns
    -------
    Tensor
        Whole numbers, of the shape and type of ``expected``.

    Raises
    ------
    ValueError
        a mean that is negative, not finite or above 1e15; seed or index out of range.
    """
    mean = expected.detach().cpu().double().numpy()
    if not (np.isfinite(mean).all() and (mean >= 0).all() and (mean <= _MAX_COUNT).all()):
        raise ValueError(
            f"expected counts are {mean.min():g} to {mean.max():g}; they must be finite, and 0 to {_MAX_COUNT:g}"
        )
    return torch.from_numpy(keyed_generator(seed, index).poisson(mean)).to(expected)


def transmission_counts(z: Tensor, photons: float, seed: int, index: int, background: float = 0.0) -> Tensor:
    """Counts c ~ Poisson(photons exp(-z) + background) of line integrals z, fixed by (seed, index).

    Parameters
    ----------
    z
        line integrals of one picture, without batch axis.
    photons
        n0, emitted photons for each ray, i.e. the expected count of a ray through air.
    seed, index
        see ``poisson_counts``.
    background
        r, expected count of scattered photons and dark current.

    Raises
    ------
    ValueError
        ``photons`` is not positive, ``background`` is negative, or z is not finite.
    """
    _check_photons(photons, background)
    if not torch.isfinite(z).all():
        raise ValueError("the line integrals hold values that are NaN or infinite")
    return poisson_counts(photons * torch.exp(-z.double()) + background, seed, index).to(z.dtype)


def line_integrals(
    counts: Tensor, photons: float | Tensor, background: float = 0.0, floor: float | Tensor | None = None
) -> Tensor:
    """z = log(photons / max(counts - background, floor)).

    The logarithm of a count of zero does not exist. Counts that are below the ``floor`` after the background is
    subtracted are replaced by it: such a ray gets the largest line integral, which is too small on average.
    ``transmission_weights`` gives these rays hardly any weight, or none.

    Parameters
    ----------
    counts
        of any shape.
    photons
        n0, a number of photons; or a tensor, the flat field for each ray in the unit of ``counts``, broadcastable to
        them.
    background
        r.
    floor
        in the unit of ``counts``. None is half a photon where ``photons`` is a number, so that the largest line
        integral is log(2 n0). The unit of a flat field may be anything (it is 1 in normalized data), so that its floor
        is ``MIN_TRANSMISSION`` times the flat field, and the largest line integral 11.8: a common factor of counts and
        flat field changes nothing.

    Raises
    ------
    ValueError
        negative counts, counts that are not finite, ``photons`` or ``floor`` not positive, ``background`` negative.
    """
    _check_photons(photons, background)
    _check_counts(counts)
    if floor is None:
        floor = photons * MIN_TRANSMISSION if isinstance(photons, Tensor) else MIN_COUNT
    floor = torch.as_tensor(floor, dtype=counts.dtype, device=counts.device)
    if not (torch.isfinite(floor).all() and (floor > 0).all()):
        raise ValueError(f"the floor of counts is {float(floor.min()):g}; it must be positive and finite")
    return torch.log(photons / torch.maximum(counts - background, floor))


def transmission_weights(counts: Tensor, background: float = 0.0) -> Tensor:
    """Weights w = max(c - r, 0)^2 / c of the weighted L2 fidelity: the inverse variances of ``line_integrals``.

    To first order, z = log(n0 / (c - r)) has the variance Var(c) / (c - r)^2, and c estimates Var(c) for Poisson
    counts. Without background the weights are the counts (Sauer and Bouman, IEEE Trans. Signal Process. 41, 1993,
    eq. 8). Rays without photons have weight 0: what they say, that z is large, is no squared error.

    For ``recon.lower_level.WeightedSquaredL2``. A common factor only rescales the regularization.

    Raises
    ------
    ValueError
        negative counts, counts that are not finite, a negative background.
    """
    _check_photons(1.0, background)
    _check_counts(counts)
    return (counts - background).clamp_min(0).square() / counts.clamp_min(MIN_COUNT) if background else counts.clone()


def kullback_leibler_background(counts: Tensor, fraction: float = 0.01) -> float:
    """A background b for ``recon.lower_level.KullbackLeibler`` where none was measured: fraction × mean count.

    That fidelity is for counts whose mean is *linear* in the picture, c ~ Poisson(A x + b): emission tomography and
    photon-limited blur. It needs b > 0, and its smoothness constant is max(c) / b^2. Counts of transmission CT depend
    on the picture through exp(-A x); use ``line_integrals`` with ``transmission_weights`` for them.

    Where b is invented rather than measured, add it to the data as well: the fidelity takes it for part of c.

    Raises
    ------
    ValueError
        no count is positive, negative counts, or ``fraction`` is not positive.
    """
    _check_counts(counts)
    positive(fraction=fraction)
    mean = float(counts.double().mean())
    if mean <= 0:
        raise ValueError("no count is positive, so there is no background to derive from them")
    return fraction * mean


def _check_attenuations(mu_water: float, mu_air: float) -> None:
    if not 0 <= mu_air < mu_water < math.inf:
        raise ValueError(
            f"mu_water is {mu_water} and mu_air {mu_air} (1/mm); valid are 0 <= mu_air < mu_water, e.g. {MU_WATER}, 0"
        )


def _check_photons(photons: float | Tensor, background: float) -> None:
    values = torch.as_tensor(photons)
    if not (torch.isfinite(values).all() and (values > 0).all()):
        raise ValueError(f"photons per ray are {float(values.min()):g}; they must be positive and finite")
    not_negative(background=background)


def _check_counts(counts: Tensor) -> None:
    if not torch.isfinite(counts).all():
        raise ValueError("the counts hold values that are NaN or infinite")
    if counts.numel() == 0 or counts.min() < 0:
        raise ValueError("counts must be at least 0, and there must be some")
