"""Trained models of other programs, as regularizers: parameters are read, nothing in their files is executed."""

from models.foreign.files import ForeignError
from models.foreign.loading import load_foreign
from models.foreign.model import Foreign

__all__ = ["Foreign", "ForeignError", "load_foreign"]
