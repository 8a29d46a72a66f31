"""Rings in reconstructions, which are stripes in sinograms: their removal by sorting."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy  # its parts are loaded where they are used
import torch
from numpy.typing import NDArray

from datasets.errors import DataError
from datasets.scans.scan import Scan

Array = NDArray[np.float64]


def without_rings(scan: Scan, size: int) -> Scan:
    """The scan with the stripes of its sinogram removed, see ``without_stripes``; ``metadata["ring_filter"]`` is size.

    Weights stay as they are, and so do rays of weight 0.

    Raises
    ------
    DataError
        ``size`` is no odd number of 3 and more, or exceeds the detector.
    """
    pixels = scan.sinogram.shape[1]
    if size < 3 or size % 2 == 0 or size > pixels:
        raise DataError(f"{scan.path}: a ring filter of {size} pixels; valid are odd numbers from 3 to {pixels}")
    made = torch.from_numpy(without_stripes(scan.sinogram.double().numpy(), size))
    if scan.weights is not None:
        made = torch.where(scan.weights > 0, made, scan.sinogram)
    return replace(scan, sinogram=made, metadata={**scan.metadata, "ring_filter": size})


def without_stripes(sinogram: Array, size: int) -> Array:
    """Remove what is constant over the views (angles, detectors) and changes from detector pixel to detector pixel.

    Algorithm 3 of Vo, Atwood and Drakopoulos, Optics Express 26, 28396, 2018: the values of each detector pixel are
    sorted, neighbouring pixels then are alike but for their offset, so that the median over ``size`` pixels at each
    rank takes stripes away, and every value goes back to its view. Stripes narrower than ``size / 2`` vanish. Features
    that stay on few pixels over the scan, near the rotation axis or in circles around it, are weakened as well.
    """
    order = np.argsort(sinogram, axis=0, kind="stable")
    smooth = scipy.ndimage.median_filter(np.take_along_axis(sinogram, order, 0), (1, size), mode="nearest")
    made = np.empty_like(sinogram)
    np.put_along_axis(made, order, smooth, 0)
    return made
