"""Weights of lines that a scan measures twice: short scans, full turns, detectors beside the axis, and all between."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from recon.operators.tomography.beams import FanBeam, Geometry

_FULL_TURN = 2 * math.pi * (1 - 1e-3)  # scans count as a full turn from here on
_TINY = 1e-9  # radians


def redundancy_weights(geometry: Geometry) -> NDArray[np.float64]:
    """Return w(angle, detector), ``(angles, detectors)``: they add up to one over the measurements of each line.

    With beta the angle from the start of the arc and gamma that of the ray to the central ray (growing with s; for
    parallel beams s takes its place in c_s), the ray (beta, gamma) is the line (beta + pi - 2 gamma, -gamma). With a
    confidence c that falls smoothly to 0 at the ends of the arc and of the detector,

        w(beta, gamma) = c(beta, gamma) / (c(beta, gamma) + c(beta + pi - 2 gamma, -gamma)),
        c(beta, gamma) = c_arc(beta) c_s(gamma),    c_arc and c_s = sin^2(pi/2 min(1, distance to the end / taper)),

    c = 0 for what was not measured (Noo et al., Phys. Med. Biol. 47, 2002, equations 44 and 45, and the same along the
    detector). A full turn has no ends, c_arc = 1, so that w = 1/2 on a centred detector. On one beside the axis w rises
    from 0 at the near edge to 1 where lines are seen once, as Wang's weights do (Med. Phys. 29, 2002); over a short
    scan it does so from the ends of the arc, as Parker's do (Med. Phys. 9, 1982). Lines seen once have w = 1, so that
    scans of a limited angle keep what they measured.

    The tapers are as long as what is seen twice: ``arc - pi`` plus twice the largest gamma that is seen on both sides
    (at most half the arc), and from the axis to the near edge of the detector.
    """
    positions = geometry.detector_positions()
    low, high = positions[0] - geometry.detector_spacing / 2, positions[-1] + geometry.detector_spacing / 2
    gamma = np.zeros(len(positions))
    widest = 0.0  # of the angles gamma that are seen on both sides
    if isinstance(geometry, FanBeam):
        gamma = np.arctan2(positions, geometry.length)
        widest = max(math.atan2(min(-low, high), geometry.length), 0.0)
    arc = geometry.arc
    taper = min(max(arc - math.pi, 0.0) + 2 * widest, arc / 2)

    def along_arc(beta: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.ones_like(beta) if arc >= _FULL_TURN else _confidence(np.minimum(beta, arc - beta), taper)

    def along_detector(s: NDArray[np.float64]) -> NDArray[np.float64]:
        return _confidence(np.minimum(s - low, high - s), min(-low, high))

    beta = (np.asarray(geometry.angles) - geometry.ends[0])[:, None]
    own = along_arc(beta) * along_detector(positions)
    other = along_arc((beta + math.pi - 2 * gamma) % (2 * math.pi)) * along_detector(-positions)
    return np.divide(own, own + other, out=np.ones_like(own), where=other > 0)


def _confidence(distance: NDArray[np.float64], taper: float) -> NDArray[np.float64]:
    """``sin^2(pi/2 min(1, distance / taper))``; 0 outside."""
    inside = distance > _TINY
    return np.where(inside, np.sin(0.5 * math.pi * np.clip(distance / max(taper, _TINY), 0.0, 1.0)) ** 2, 0.0)
