"""Which format a path is of."""

from __future__ import annotations

import re
from pathlib import Path

from models.foreign.crr import load_crr
from models.foreign.files import ForeignError, read_json
from models.foreign.model import Foreign
from models.foreign.pylopt import load_pylopt
from models.foreign.wcrr import load_wcrr
from recon.errors import positive

CONFIG, CHECKPOINTS = "config.json", "checkpoints"
FORMATS = (
    "folders of CRR-NN and WCRR-NN (config.json and checkpoints/checkpoint_N.pth), one of the checkpoints, and folders "
    "with the two .pt files of PyLOpt"
)


def load_foreign(path: Path, sigma: float, lmbd: float | None = None, mu: float | None = None) -> Foreign:
    """The model at a path, for noise of standard deviation ``sigma`` on [0, 1].

    Parameters
    ----------
    path : Path
        A folder of CRR-NN or WCRR-NN (the checkpoint with the largest number is taken), one of the checkpoints in it,
        or a folder with the two files of PyLOpt.
    sigma : float
        Of the noise.
    lmbd, mu : float, optional
        In place of those of the file.

    Raises
    ------
    FileNotFoundError
        A file is missing.
    ForeignError
        (a ValueError) The files are of no known format, damaged, too large, or hold code.
    ValueError
        A number is out of range.
    """
    positive(sigma=sigma, lmbd=lmbd, mu=mu)
    folder = path if path.is_dir() else path.parent.parent if path.parent.name == CHECKPOINTS else path.parent
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; valid are {FORMATS}")
    config = folder / CONFIG
    if not config.is_file():
        if not path.is_dir() or not any(path.glob("*.pt")):
            raise ForeignError(f"{path}: no {CONFIG} belongs to it; valid are {FORMATS}")
        return load_pylopt(path, sigma, lmbd) if mu is None else _no_mu(path)
    checkpoint = _latest(path) if path.is_dir() else path
    names = read_json(config).keys()
    if "activation_params" in names:
        return load_crr(checkpoint, config, lmbd, mu)
    if "spline_activation" in names:
        return load_wcrr(checkpoint, config, sigma, lmbd) if mu is None else _no_mu(path)
    raise ForeignError(f"{config}: has neither activation_params (CRR-NN) nor spline_activation (WCRR-NN)")


def _latest(folder: Path) -> Path:
    """The checkpoint with the largest number."""
    found = {}
    for path in (folder / CHECKPOINTS).glob("*.pth"):
        if match := re.fullmatch(r"checkpoint_([0-9]{1,9})\.pth", path.name):
            found[int(match[1])] = path
    if not found:
        raise FileNotFoundError(f"{folder / CHECKPOINTS}: holds no checkpoint_N.pth")
    return found[max(found)]


def _no_mu(path: Path) -> Foreign:
    raise ForeignError(f"{path}: mu is a parameter of CRR-NN only; say `file` for it")
