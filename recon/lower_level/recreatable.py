"""Modules that know the arguments they were made with."""

from __future__ import annotations

import inspect
from typing import Any, Self

from torch import nn


class Recreatable(nn.Module):
    """A module that can be saved as its class, the arguments of its constructor, and its parameters."""

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        """Keep the arguments of the constructor, so that any model can be saved and made again."""
        self = super().__new__(cls)
        self.__dict__["_arguments"] = (args, kwargs)
        return self

    def constructor_arguments(self) -> dict[str, Any]:
        """The arguments that this model was made with, by name, defaults included."""
        args, kwargs = self.__dict__["_arguments"]
        signature = inspect.signature(type(self).__init__)
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        arguments = dict(list(bound.arguments.items())[1:])
        for name, parameter in signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                arguments |= arguments.pop(name)
            elif parameter.kind is inspect.Parameter.VAR_POSITIONAL and arguments.pop(name):
                raise TypeError(f"{type(self).__name__}: the arguments *{name} of its constructor have no names")
        return arguments
