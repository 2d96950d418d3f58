"""The type checker that the test run applies to the package: beartype, for annotations with tensor shapes alone.

pyright checks the other annotations. At run time tests pass stand-ins for models, trainers and browsers.
"""

import inspect
import typing
from typing import Any, Callable, TypeVar

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

F = TypeVar("F", bound=Callable)
# PEP 484: where a float is expected, an int is allowed.
CONF = BeartypeConf(is_pep484_tower=True)


def has_shape(hint: Any) -> bool:
    """Whether a type hint contains the shape of a tensor."""
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    return any(has_shape(argument) for argument in typing.get_args(hint))


def check(function: F) -> F:
    """Decorates a function so that shapes of its arguments and its result are checked at each call."""
    function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if has_shape(hint)}
    return beartype(conf=CONF)(function) if function.__annotations__ else function
