"""The type checker that the test run applies to the package: beartype, for annotations with tensor shapes alone.

pyright checks the other annotations. At run time tests pass stand-ins for models, trainers and browsers.
"""

import functools
import inspect
import typing
from typing import Any, Callable, TypeVar

import torch
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
    """Decorates a function so that shapes of its arguments and its result are checked at each call.

    While torch traces, nothing is checked: torch would trace the reading of each shape, too, and exports would take
    several times as long. The same modules are checked wherever else they are called.
    """
    function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if has_shape(hint)}
    if not function.__annotations__:
        return function
    checked = beartype(conf=CONF)(function)

    @functools.wraps(function)
    def outside_traces(*arguments, **options):
        return (function if torch.jit.is_tracing() else checked)(*arguments, **options)

    return typing.cast(F, outside_traces)
