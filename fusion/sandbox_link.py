"""What passes between the tests and the code (fusion.sandbox_judge): questions, and values as JSON."""

from __future__ import annotations

import builtins
import json
import os
import sys
import types
from typing import Any, NoReturn

from fusion.sandbox_standins import Callback, Standin, special

LIBRARY = {"bisect", "builtins", "calendar", "cmath", "collections", "copy", "datetime", "decimal", "fractions",
           "functools", "heapq", "itertools", "math", "operator", "random", "re", "statistics", "string", "time",
           "typing"}  # fmt: skip
"""Modules of which the judge takes its own where the code means them: importing them does nothing else."""

PLAIN: dict[Any, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
MAKERS: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
SUBCLASSED: tuple[Any, ...] = (tuple, list, dict, set, frozenset, str, int, float)


class Ended(BaseException):
    """The other side is not there any more."""


class Link:
    """One end of the pipes between judge and code: asks, answers while it waits, and keeps what it has named."""

    def __init__(self, read: int, write: int, *, judge: bool) -> None:
        self._in, self._out = os.fdopen(read, "rb"), os.fdopen(write, "wb")
        self._judge = judge
        self._named: list[Any] = []  # own objects that the other side has a number for
        self._numbers: dict[int, int] = {}
        self._classes: dict[str, type[BaseException]] = {}
        self.ended = False

    def ask(self, what: str, *told: Any) -> Any:
        """Return what the other side says, or raise what it raised; Ended where it has ended."""
        arguments = [self.encode(one) for one in told]
        self.send({"ask": what, "told": arguments})
        while True:
            said = self.receive()
            if "ask" in said:
                self._answer(said)
            elif "print" in said:
                sys.stdout.write(str(said["print"]))
            elif "raise" in said:
                raise self._error(said["raise"], said["bases"], [self.decode(one) for one in said["args"]])
            else:
                for one, after in zip(told, said.get("told", ()), strict=False):
                    refill(one, self.decode(after))
                return self.decode(said["return"])

    def serve(self) -> NoReturn:
        """Answer until the other side ends."""
        while True:
            try:
                self._answer(self.receive())
            except Ended:
                os._exit(0)

    def send(self, message: dict[str, Any]) -> None:
        """Write a message."""
        try:
            self._out.write(json.dumps(message).encode() + b"\n")
            self._out.flush()
        except (BrokenPipeError, ValueError):
            self.ended = True
            raise Ended from None

    def receive(self) -> dict[str, Any]:
        """Read a message; Ended where there is none."""
        line = self._in.readline()
        if not line.endswith(b"\n"):
            self.ended = True
            raise Ended
        found = json.loads(line)
        return dict(found)

    def _answer(self, said: dict[str, Any]) -> None:
        try:
            if self._judge and said["told"][0]["kind"] != "yours":
                raise TypeError("only what the tests have passed to the code can be called by it")
            told = [self.decode(one) for one in said["told"]]
            result = self._perform(said["ask"], told)
            answer = {"return": self.encode(result), "told": [self.encode(one) for one in told]}
        except Ended:
            raise
        except SystemExit:
            if self._judge:
                raise
            os._exit(0)
        except BaseException as error:
            bases = [kind.__name__ for kind in type(error).__mro__]
            answer = {"raise": bases[0], "bases": bases[1:], "args": [self._shown(one) for one in error.args]}
        self.send(answer)

    def _perform(self, what: str, told: list[Any]) -> Any:
        """Do what the other side asks for. Of the tests' things, functions may be called, and their nodes read."""
        if self._judge:
            mine = told[0]
            public = what in ("get", "set") and not str(told[1]).startswith("_") and type(mine).__module__ == "__main__"
            if what not in ("call", "next") and not public:
                raise AttributeError(f"the tests' {type(mine).__name__} is not to be looked into")
        if what == "call":
            return told[0](*told[1], **told[2])
        if what == "next":
            return next(told[0])
        if what == "get":
            return getattr(told[0], told[1])
        if what == "set":
            return setattr(told[0], told[1], told[2])
        if what == "name":
            return self._named_by_code(told[0])
        if what == "special":
            return special(told[0], told[1], told[2])
        raise ValueError(f"there is no {what!r}")

    def _named_by_code(self, name: str) -> Any:
        found = vars(sys.modules["__main__"])
        return (True, found[name]) if name in found else (False, None)

    def _error(self, name: str, bases: list[str], arguments: list[Any]) -> BaseException:
        return self._class(name, bases)(*arguments)

    def _class(self, name: str, bases: list[str]) -> type[BaseException]:
        """Return a builtin exception, or a class that stands for one of the code's."""
        known = getattr(builtins, name, None)
        if isinstance(known, type) and issubclass(known, BaseException):
            return known
        if name not in self._classes:
            above = self._class(bases[0], bases[1:]) if bases else Exception
            self._classes[name] = type(name, (above,), {})
        return self._classes[name]

    def _shown(self, value: Any) -> Any:
        try:
            return self.encode(value)
        except Exception:
            return repr(type(value))

    def encode(self, value: Any) -> Any:
        """Return a value as JSON: data as it is, other things as numbers that stand for them."""
        kind = type(value)
        if value is None or kind in (bool, int, float, str):
            return value
        if kind in PLAIN:
            return {"kind": PLAIN[kind], "items": [self.encode(one) for one in value]}
        if kind is dict:
            return {"kind": "dict", "items": [[self.encode(k), self.encode(v)] for k, v in value.items()]}
        if kind in (bytes, bytearray):
            return {"kind": kind.__name__, "hex": value.hex()}
        if kind in (complex, range, slice):
            parts = (value.real, value.imag) if kind is complex else (value.start, value.stop, value.step)
            return {"kind": kind.__name__, "parts": [self.encode(part) for part in parts]}
        if kind in (Standin, Callback):
            return {"kind": "yours", "number": object.__getattribute__(value, "_number")}
        told_as_it_is = self._judge or not runs_texts(value)
        if isinstance(value, types.ModuleType) and value.__name__ in LIBRARY and told_as_it_is:
            return {"kind": "module", "name": value.__name__}
        if told_as_it_is and (made := of_the_library(value)) is not None:
            return made | {"values": [self.encode(one) for one in made["values"]]} if "values" in made else made
        return {"kind": "mine", "number": self._number(value), "plain": self._plain(value)} | self._exception(value)

    def _number(self, value: Any) -> int:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._named)
            self._named.append(value)  # which keeps it alive, and its id its own
        return self._numbers[id(value)]

    def _plain(self, value: Any) -> Any:
        """Return what an object of a subclass of list, int and the like holds, or nothing."""
        for kind in SUBCLASSED:
            if isinstance(value, kind):
                return [self.encode(kind(kind.__iter__(value)) if kind in PLAIN else kind(value))]
        return None

    def _exception(self, value: Any) -> dict[str, Any]:
        if not (isinstance(value, type) and issubclass(value, BaseException)):
            return {}
        return {"exception": [kind.__name__ for kind in value.__mro__]}

    def decode(self, said: Any) -> Any:
        """Return the value of what :meth:`encode` made on the other side."""
        if not isinstance(said, dict):
            return said
        kind = said["kind"]
        if kind in MAKERS:
            return MAKERS[kind](self.decode(one) for one in said["items"])
        if kind == "dict":
            return {self.decode(key): self.decode(value) for key, value in said["items"]}
        if kind in ("bytes", "bytearray"):
            return (bytes if kind == "bytes" else bytearray).fromhex(said["hex"])
        if kind in ("complex", "range", "slice"):
            return getattr(builtins, kind)(*(self.decode(part) for part in said["parts"]))
        if kind == "yours":
            return self._named[said["number"]]
        if kind in ("module", "library", "value"):
            found = from_the_library(said, self)
            if self._judge and kind != "value" and runs_texts(found):
                raise ImportError(f"{said['name']} is not taken from the code: it runs texts, which may be the code's")
            return found
        if self._judge:
            if "exception" in said:
                return self._class(said["exception"][0], said["exception"][1:])
            return Standin(self, said["number"], None if said["plain"] is None else [self.decode(said["plain"][0])])
        return Callback(self, said["number"])


def of_the_library(value: Any) -> dict[str, Any] | None:
    """Return how the other side finds or makes a thing of the standard library, or None where it is not of it."""
    kind = type(value)
    place = kind.__module__.split(".")[0]
    if place in ("decimal", "fractions", "_decimal"):
        return {"kind": "value", "module": place.strip("_"), "name": kind.__name__, "values": [str(value)]}
    if place == "collections" and kind.__name__ in ("deque", "Counter", "OrderedDict"):
        items = [dict(value)] if isinstance(value, dict) else [list(value), value.maxlen]
        return {"kind": "value", "module": place, "name": kind.__name__, "values": items}
    if place == "datetime" and kind.__name__ in ("date", "datetime", "time"):
        return {"kind": "value", "module": place, "name": kind.__name__, "iso": value.isoformat()}
    if place == "datetime" and kind.__name__ == "timedelta":
        parts = [value.days, value.seconds, value.microseconds]
        return {"kind": "value", "module": place, "name": "timedelta", "values": parts}
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    known = module in LIBRARY and isinstance(name, str) and getattr(sys.modules.get(str(module)), name, None) is value
    return {"kind": "library", "module": module, "name": name} if known else None


def from_the_library(said: dict[str, Any], link: Link) -> Any:
    """Return the thing of this process's own standard library that the other side means."""
    import importlib

    module, name = str(said.get("module", said["name"])), str(said["name"])
    if module not in LIBRARY or name.startswith("_"):
        raise ImportError(f"{module}.{name} is not taken from the code")
    found = importlib.import_module(module)
    if said["kind"] == "module":
        return found
    thing = getattr(found, name)
    if said["kind"] == "library":
        return thing
    if (module, name) not in VALUES:
        raise ImportError(f"{module}.{name} is not passed on")
    return thing.fromisoformat(said["iso"]) if "iso" in said else thing(*map(link.decode, said["values"]))


def runs_texts(found: Any) -> bool:
    """Tell whether a module, function or class of the library runs what stands in texts, or leads to what does.

    Tests pass what one function of the code returned to another. If that is exec, or get_type_hints, the judge would
    run a text of the code's. So the judge takes none of these from the code, which calls them itself.
    """
    if isinstance(found, types.ModuleType):  # statistics, for one, has sys
        return found.__name__ not in LIBRARY - {"builtins", "functools", "operator", "typing"}
    module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    return (
        module == "typing"
        or (module == "builtins" and not isinstance(found, type))
        or name in ("singledispatch", "singledispatchmethod", "attrgetter", "methodcaller", "call")
    )


VALUES = {("decimal", "Decimal"), ("fractions", "Fraction"), ("collections", "deque"), ("collections", "Counter"),
          ("collections", "OrderedDict"), ("datetime", "date"), ("datetime", "datetime"), ("datetime", "time"),
          ("datetime", "timedelta")}  # fmt: skip


def refill(mine: Any, after: Any) -> Any:
    """Make containers hold what the function that they were passed to left in them; return what now stands there."""
    if type(mine) is not type(after) or type(mine) not in (list, tuple, dict, set, bytearray):
        return mine if type(mine) in (Standin, Callback) else after
    if type(mine) in (list, tuple) and len(mine) == len(after):
        both = [refill(one, other) for one, other in zip(mine, after, strict=True)]
        if type(mine) is list:
            mine[:] = both
    elif type(mine) in (list, bytearray):
        mine[:] = after
    elif type(mine) is dict:
        values = {key: refill(mine[key], value) if key in mine else value for key, value in after.items()}
        mine.clear()
        mine.update(values)
    elif type(mine) is set:
        mine.clear()
        mine.update(after)
    return mine
