"""What stands in the tests for objects of the code, and in the code for those of the tests (fusion.sandbox_judge)."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusion.sandbox_link import Link

ASKED = ("__len__", "__getitem__", "__setitem__", "__delitem__", "__hash__", "__repr__", "__str__", "__bool__",
         "__int__", "__float__", "__index__", "__round__", "__abs__", "__neg__", "__pos__", "__invert__", "__enter__",
         "__exit__", "__reversed__", "__next__", "__call__", "__instancecheck__")  # fmt: skip
COMPUTED = ("__add__", "__sub__", "__mul__", "__truediv__", "__floordiv__", "__mod__", "__pow__", "__matmul__",
            "__and__", "__or__", "__xor__", "__lshift__", "__rshift__", "__radd__", "__rsub__", "__rmul__",
            "__rtruediv__")  # fmt: skip
COMPARED = ("__lt__", "__le__", "__gt__", "__ge__")


class Standin:  # noqa: PLW1641  (it gets its __hash__ below)
    """Stands in the tests for an object of the code."""

    def __init__(self, link: Link, number: int, plain: list[Any] | None) -> None:
        for name, value in (("_link", link), ("_number", number), ("_plain", plain), ("_informed", False)):
            object.__setattr__(self, name, value)

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":
            return Standin
        return object.__getattribute__(self, "_link").ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__getattribute__(self, "_link").ask("set", self, name, value)

    def __eq__(self, other: object) -> Any:
        if type(other) is Standin:
            return bool(asked_of(self, "__eq__", other) is True)
        plain = object.__getattribute__(self, "_plain")
        return plain is not None and plain[0] == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __iter__(self) -> Any:
        return asked_of(self, "__iter__")

    def __contains__(self, wanted: object) -> bool:
        return any(one is wanted or one == wanted for one in self)


class Callback:
    """Stands in the code for something of the tests: a function, an iterator, or an object of one of their classes."""

    def __init__(self, link: Link, number: int) -> None:
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Have the tests' function called."""
        return object.__getattribute__(self, "_link").ask("call", self, list(args), kwargs)

    def __iter__(self) -> Callback:
        return self

    def __next__(self) -> Any:
        return object.__getattribute__(self, "_link").ask("next", self)

    def __getattr__(self, name: str) -> Any:
        return object.__getattribute__(self, "_link").ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__getattribute__(self, "_link").ask("set", self, name, value)


def asked_of(standin: Standin, name: str, *args: Any, **kwargs: Any) -> Any:
    """Return what a special method of the code's object gives."""
    link = object.__getattribute__(standin, "_link")
    if object.__getattribute__(standin, "_informed") and name in ASKED and name not in ("__call__", "__repr__"):
        raise TypeError(
            "the code's object was computed with data of the tests, and is no number to compare with theirs"
        )
    if name == "__call__":
        return link.ask("call", standin, list(args), kwargs)
    return link.ask("special", standin, name, list(args))


def special(value: Any, name: str, arguments: list[Any]) -> Any:
    """Return what the language makes of a special method."""
    ways: dict[str, Any] = {"__len__": len, "__hash__": hash, "__repr__": repr, "__str__": str, "__bool__": bool,
                            "__iter__": iter, "__next__": next, "__reversed__": reversed, "__abs__": abs,
                            "__round__": round, "__int__": int, "__float__": float}  # fmt: skip
    if name == "__instancecheck__":
        return isinstance(arguments[0], value)
    if name in ways:
        return ways[name](value, *arguments)
    if hasattr(operator, name):
        return getattr(operator, name)(value, *arguments)
    return getattr(value, name)(*arguments)


def _deferred(name: str) -> Any:
    def method(self: Standin, *args: Any, **kwargs: Any) -> Any:
        return asked_of(self, name, *args, **kwargs)

    return method


def _computed(name: str) -> Any:
    """Return an operator. With the tests' own number it gives an object, whose value then is not taken as theirs.

    Else abs(found - 4) < 0.1 would tell the code what is expected, and take its word for how near it is.
    """

    def method(self: Standin, other: object) -> Any:
        plain = object.__getattribute__(self, "_plain")
        if type(other) is not Standin and plain is not None:
            return getattr(plain[0], name)(other)
        found = asked_of(self, name, other)
        if type(other) is not Standin:
            if type(found) is not Standin:
                raise TypeError(f"the code's object computes {name} with the tests' data; it must be a number itself")
            object.__setattr__(found, "_informed", True)
        return found

    return method


def _compared(name: str) -> Any:
    def method(self: Standin, other: object) -> Any:
        if type(other) is Standin:
            return bool(asked_of(self, name, other) is True)
        plain = object.__getattribute__(self, "_plain")
        return NotImplemented if plain is None else getattr(plain[0], name)(other)

    return method


for _name in ASKED:
    setattr(Standin, _name, _deferred(_name))
for _name in COMPUTED:
    setattr(Standin, _name, _computed(_name))
for _name in COMPARED:
    setattr(Standin, _name, _compared(_name))
