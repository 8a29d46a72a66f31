r"""Fields of Experts of PyLOpt (github.com/VLOGroup/pylopt): a file of filters and a file of Student-t potentials.

Format, as of ``ImageFilter.save`` and ``StudentT.save``: dictionaries with ``initialisation_dict`` and ``state_dict``;
``filter_tensor`` (K, 1, s, s), and ``weight_tensor`` (K) with the logarithms of the weights. The energy is

    1/(2 sigma^2) ||x - y||^2 + lam sum_k e^{w_k} sum_p log(1 + (c_k * x)_p^2),

here times sigma^2. PyLOpt keeps lam in the configuration of its programs, not in its files: it has to be given.
Potentials that are splines have another ``state_dict``, and are refused. Filters must have mean zero, as PyLOpt's
projection leaves them, as those of :class:`models.FieldsOfExperts` have.

Student-t is not convex: sup(-psi'') = lam sigma^2 e^{w_k}/4. Where the proved modulus 1 - ||sum_k sup(-psi_k'') C_k^T
C_k|| is not positive, nothing is certified.

Boundary: the original reflects x itself before filtering; here filters lie within the image, and y is mirrored.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.foreign.files import ForeignError, read_archive, tensors
from models.foreign.model import Foreign
from models.regularizers.fields_of_experts import FieldsOfExperts
from models.regularizers.initial import InitialFilters

_KEYS = {"initialisation_dict", "state_dict"}
_FILTERS, _WEIGHTS = "filter_tensor", "weight_tensor"
#: share of the norm of a filter that its constant part may have: single precision leaves less
_MEAN = 1e-5
#: of the logarithm of a weight, in size: beyond it, weights overflow
_LARGEST_LOG = 100.0


def load_pylopt(folder: Path, sigma: float, lmbd: float | None = None) -> Foreign:
    """The model in a folder that holds two ``.pt`` files, filters and potential; ``lmbd`` is lam.

    Raises
    ------
    FileNotFoundError
        a file is missing.
    ForeignError
        (a ValueError) the files are none of this format, or ``lmbd`` is not given.
    """
    contents = {path: read_archive(path) for path in sorted(folder.glob("*.pt"))}
    filters = [path for path, content in contents.items() if _FILTERS in _state(content, path)]
    weights = [path for path in contents if path not in filters]
    if len(filters) != 1 or len(weights) != 1:
        raise ForeignError(
            f"{folder}: must hold one file of filters and one of potentials, has {len(contents)} .pt files"
        )
    if _WEIGHTS not in _state(contents[weights[0]], weights[0]):
        raise ForeignError(
            f"{weights[0]}: has no {_WEIGHTS}; of PyLOpt's potentials only Student-t is read, no splines"
        )
    if lmbd is None:
        raise ForeignError(f"{folder}: PyLOpt's files hold no regularization parameter lam; give it by --lmbd")
    kernels, logs = _filters(contents[filters[0]], filters[0]), _weights(contents[weights[0]], weights[0])
    if len(kernels) != len(logs):
        raise ForeignError(f"{folder}: {len(kernels)} filters, but {len(logs)} potentials")
    made = FieldsOfExperts(
        len(kernels),
        kernels.shape[-1],
        potential="student_t",
        log_scale=math.log(2 * lmbd * sigma**2),
        log_width=0.0,
        initial_filters=InitialFilters("normal"),
    ).double()
    with torch.no_grad():
        made.weight.copy_(kernels[:, 0])
        made.log_weights.copy_(logs)
        made.log_scale.fill_(math.log(2 * lmbd * sigma**2))  # in double precision
    return Foreign("PyLOpt", made.requires_grad_(False), f"λ {lmbd:.4g} given", (kernels,))


def _state(content: dict[str, Any], path: Path) -> dict[str, Any]:
    if content.keys() != _KEYS or not isinstance(content["state_dict"], dict):
        raise ForeignError(
            f"{path}: has the entries {', '.join(map(str, content))[:200]}, but files of PyLOpt have "
            f"{' and '.join(sorted(_KEYS))}"
        )
    return content["state_dict"]


def _filters(content: dict[str, Any], path: Path) -> Tensor:
    state = _state(content, path)
    shape = tuple(getattr(state[_FILTERS], "shape", ()))
    if len(shape) != 4 or shape[1] != 1 or shape[2] != shape[3] or not 2 <= shape[2] <= 31 or not 1 <= shape[0] <= 1024:
        raise ForeignError(f"{path}: {_FILTERS} has the shape {shape}, but must have (filters, 1, size, size)")
    kernels = tensors(state, {_FILTERS: shape}, path)[_FILTERS]
    constant = kernels.mean((1, 2, 3)).abs() * shape[2]
    if bool((constant > _MEAN * kernels.flatten(1).norm(dim=1)).any()):
        raise ForeignError(
            f"{path}: filter {int(constant.argmax())} has no mean of zero, but PyLOpt projects them to it"
        )
    return kernels


def _weights(content: dict[str, Any], path: Path) -> Tensor:
    state = _state(content, path)
    shape = tuple(getattr(state[_WEIGHTS], "shape", ()))
    if len(shape) != 1:
        raise ForeignError(f"{path}: {_WEIGHTS} has the shape {shape}, but must have (filters,)")
    logs = tensors(state, {_WEIGHTS: shape}, path)[_WEIGHTS]
    if bool((logs.abs() > _LARGEST_LOG).any()):
        raise ForeignError(
            f"{path}: {_WEIGHTS} has values beyond {_LARGEST_LOG:g}, but must hold logarithms of weights"
        )
    return logs
