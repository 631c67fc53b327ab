"""Tests that judge from outside: they run in one process, and the code that they test in another.

fusion.sandbox runs this as the program inside the sandbox. The first process, the judge, has the tests; it forks
before it reads them, and the second one gets the code alone. What the tests take from the code are stand-ins: a call
goes over a pipe, and numbers, texts and containers come back as data, which the judge makes into objects of its own. So
the code has no way to the tests, to what they expect, to how they compare, or to the status that the judge ends with,
which alone says whether they passed. Other objects of the code stay there: a stand-in asks for their attributes, items
and methods, but no comparison with the tests' own data is left to them.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import signal
import sys
import types
from typing import Any, NoReturn

from fusion.sandbox_link import LIBRARY, Ended, Link, from_the_library

ENDED = 3
"""The judge's status where the code, or the tests, ended before the tests had."""


class Names(dict[str, Any]):
    """The tests' names: their own, the builtins', and what else they use is the code's."""

    def __init__(self, link: Link, tests: ast.Module) -> None:
        super().__init__(__name__="__main__")  # what stands under `if __name__ == …` is a test too
        self._link = link
        nodes = list(ast.walk(tests))
        loaded = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        self._looked_into = {
            n.value.id for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)
        }
        self._only_builtins = loaded - bound(nodes) <= set(dir(builtins))

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name) and not self._only_builtins:  # else the code's abs could judge for the tests
            raise KeyError(name)
        if name in LIBRARY and name in self._looked_into:  # that the code imported, most likely
            return from_the_library({"kind": "module", "name": name}, self._link)
        there, found = self._link.ask("name", name)
        if there is not True:
            raise KeyError(name)
        self[name] = found
        return found


def bound(nodes: list[ast.AST]) -> set[str]:
    """Return the names that the tests bind anywhere."""
    names = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    names |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    names |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    imported = (one for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for one in node.names)
    return names | {(one.asname or one.name).split(".")[0] for one in imported}


class Printed:
    """The code's standard output, which the tests see as theirs."""

    encoding = "utf-8"

    def __init__(self, link: Link) -> None:
        self._link = link

    def write(self, text: str) -> int:
        """Pass the text on."""
        self._link.send({"print": str(text)})
        return len(text)

    def flush(self) -> None:
        """Do nothing: it is there already."""


def be_the_code(link: Link) -> NoReturn:
    """Load the code and do what the tests call it for; ends with this process."""
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)  # the tests are to be read there
    code = str(link.receive()["code"])
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    sys.stdout = Printed(link)
    try:
        exec(compile(code, "code", "exec"), vars(main))  # noqa: S102  (in the sandbox)
        link.send({"return": None})
    except SystemExit:
        os._exit(0)
    except BaseException as error:
        import traceback

        traceback.print_exc()
        link.send({"raise": type(error).__name__, "bases": [k.__name__ for k in type(error).__mro__[1:]], "args": []})
    link.serve()


def be_the_judge(link: Link, child: int) -> NoReturn:
    """Run the tests and end with 0 where they ran to their end, with what the code ended with where that did."""
    import ctypes

    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: or the code, the same user's, might trace this process
    with os.fdopen(0, encoding="utf-8", closefd=False) as order:
        told = json.load(order)
    try:
        tests = ast.parse(told["tests"], "tests")
        link.send({"code": told["code"]})
        while "print" in (said := link.receive()):
            sys.stdout.write(str(said["print"]))
        if "raise" in said:
            raise link._error(said["raise"], said["bases"], [])
        exec(compile(tests, "tests", "exec"), Names(link, tests))  # noqa: S102  (in the sandbox)
        if link.ended:  # and the tests took no notice
            raise Ended
        status = 0
    except Ended:
        _, ended = os.waitpid(child, 0)
        if os.WIFSIGNALED(ended):  # of too much CPU time, for one
            signal.signal(os.WTERMSIG(ended), signal.SIG_DFL)
            os.kill(os.getpid(), os.WTERMSIG(ended))
        status = ENDED
    except SystemExit:
        status = ENDED
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 1
    try:
        sys.stdout.flush()
    finally:
        os._exit(status)


def main() -> NoReturn:
    """Become two processes. The child has nothing of the tests: they are read after it has its own memory."""
    sys.set_int_max_str_digits(0)  # a test may well ask for 1000!; the time is limited
    to_code, from_judge = os.pipe()
    to_judge, from_code = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(from_judge)
        os.close(to_judge)
        be_the_code(Link(to_code, from_code, judge=False))
    os.close(to_code)
    os.close(from_code)
    be_the_judge(Link(to_judge, from_judge, judge=True), child)
