"""From the names and options of a recipe to the functions and arguments they mean."""

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Union, get_args, get_origin, get_type_hints

_SCALARS = (bool, int, float, str)


def resolve(reference: str) -> Callable[..., object]:
    """The function that `module:function` names, e.g. `mypackage.nets:small`.

    Raises ValueError where the module is not there or has no such function. An error *inside* the module,
    such as an import of something that is not installed, is the module's own and passes through as it is.
    """
    module_name, _, attribute = reference.partition(":")
    if not module_name.strip(".") or not attribute:
        raise ValueError(f"expected module:function, such as mypackage.nets:small, got {reference!r}")
    if module_name.startswith("."):
        raise ValueError(f"expected the full name of a module, got the relative {module_name!r} in {reference!r}")
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"no module {error.name!r}, which {reference!r} names; install it or put its folder on PYTHONPATH"
        ) from error
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise ValueError(unknown(f"function in {module_name}", part, _functions(found))) from error
    if not callable(found):
        raise ValueError(f"expected a function at {reference!r}, got {type(found).__name__}")
    return found


def choose(kind: str, name: str, choices: Mapping[str, Callable[..., object]]) -> Callable[..., object]:
    """The function called `name` among ours, or the user's own where `name` is `module:function`."""
    if ":" in name:
        return resolve(name)
    if name not in choices:
        raise ValueError(unknown(kind, name, [*choices, "module:function"]))
    return choices[name]


def call(function: Callable[..., object], options: Mapping[str, object], name: str) -> object:
    """`function(**options)`, once the options are known to fit its signature.

    `name` is what the user called the function. Raises ValueError for an option that it does not take or
    lacks, and TypeError for a value that is not of the annotated type, as far as that is made of bool, int,
    float, str and None.
    """
    parameters = inspect.signature(function).parameters
    accepted = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for option in options:
        if option not in accepted and not takes_any:
            raise ValueError(unknown(f"option of {name}", option, accepted))
    missing = [n for n in accepted if parameters[n].default is inspect.Parameter.empty and n not in options]
    if missing:
        raise ValueError(f"{name} needs the options {', '.join(missing)}; got {', '.join(options) or 'none'}")
    hints = _hints(function)
    for option, value in options.items():
        if option in hints and not _fits(value, hints[option]):
            expected = inspect.formatannotation(hints[option])
            raise TypeError(f"option {option} of {name}: expected {expected}, got {value!r}")
    return function(**options)


def unknown(kind: str, name: str, choices: Iterable[str]) -> str:
    """The text of the error about a `name` that is none of the `choices`, with the nearest of them."""
    listed = sorted(choices)
    # By likeness alone `lenet` would be nearer to `resnet20` than to `lenet_300_100`.
    nearest = [choice for choice in listed if name and name in choice] or get_close_matches(name, listed)
    guess = f" did you mean {nearest[0]!r}?" if nearest else ""
    return f"no {kind} {name!r};{guess} available: {', '.join(listed) or 'none'}"


def _functions(found: object) -> list[str]:
    return [name for name in dir(found) if not name.startswith("_") and callable(getattr(found, name))]


def _hints(function: Callable[..., object]) -> dict[str, object]:
    # The hints of a class are those of its attributes; only a function's are those of its arguments.
    if not inspect.isfunction(function):
        return {}
    try:
        return get_type_hints(function)
    except NameError:
        # Hints that are imported for type checkers only cannot be looked up when it runs.
        return {}


def _fits(value: object, hint: object) -> bool:
    """False where `hint` is made of plain scalars and None only and `value` is none of them."""
    allowed = get_args(hint) if _is_union(hint) else (hint,)
    if not all(kind in (*_SCALARS, type(None)) for kind in allowed):
        return True
    # An int is a good float, but True is not a good 1.
    return type(value) in allowed or (type(value) is int and float in allowed)


def _is_union(hint: object) -> bool:
    # `int | None` and `Optional[int]` have different origins before Python 3.14.
    return get_origin(hint) is Union or get_origin(hint) is type(int | None)
