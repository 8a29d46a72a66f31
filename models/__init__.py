"""Regularizers and networks."""

from models.fields_of_experts import FieldsOfExperts
from models.total_variation import TotalVariation

__all__ = ["FieldsOfExperts", "TotalVariation"]
