"""Tests judge from outside: what code that is right may do passes, and what code does to pass wrongly does not."""

from __future__ import annotations

import textwrap

import pytest

from fusion.sandbox import Limits, isolation, judge_all
from fusion.sandbox_judge import ENDED

pytestmark = pytest.mark.skipif(
    not isolation().complete,
    reason=f"this machine isolates no programs ({isolation().why}): run as root, or allow them",
)
QUICK = Limits(cpu_seconds=2, wall_seconds=20.0, memory=256 << 20)
TESTS = "def check(f):\n    assert f(2) == 4\n    assert abs(f(3) - 9) < 1e-6\n\ncheck(square)\n"
WRONG = "def square(x): return -1\n"


def judged(*pairs: tuple[str, str]):
    return judge_all([(textwrap.dedent(code), textwrap.dedent(tests)) for code, tests in pairs], limits=QUICK)


ATTACKS = {
    "it ends well before the tests": "import os; os._exit(0)",
    "it ends well when it is called": "import os\ndef square(x): os._exit(0)",
    "it asks to end": "def square(x): raise SystemExit(0)",
    "it ends at exit": "import atexit, os; atexit.register(os._exit, 0); raise RuntimeError",
    "it prints what a passing program might": "print('passed'); print('0'); print('{\"exit\": 0}')",
    "it replaces what ends programs": "import os, sys\nos._exit = sys.exit = lambda *_: None\nsys.excepthook = print",
    "it replaces builtins": "import builtins\nbuiltins.abs = lambda x: 0.0\nabs = builtins.abs\n"
                            "builtins.AssertionError = type('A', (Exception,), {})",
    "it looks for the tests in frames": """
        import sys
        def square(x):
            frame = sys._getframe()
            while frame:
                for name, value in {**frame.f_globals, **frame.f_locals}.items():
                    if 'assert ' + 'f(2)' in str(value): return 4 if x == 2 else 9
                frame = frame.f_back
            return -1
        """,
    "it looks for the tests in memory": """
        import gc
        def square(x):
            found = [o for o in gc.get_objects() if isinstance(o, (dict, list)) and 'f(2) ==' + ' 4' in repr(o)[:10**6]]
            return (4 if x == 2 else 9) if found else -1
        """,
    "it reads files that are open": """
        import os
        def square(x):
            for number in range(64):
                try:
                    os.lseek(number, 0, 0)
                    if b'assert f(2)' in os.read(number, 1 << 16): return 4 if x == 2 else 9
                except OSError: pass
            return -1
        """,
    "it reads the program": "def square(x):\n    return 4 if 'assert f(2)' in open('/program.py').read() else -1",
    "it looks into /proc": "import os\ndef square(x):\n    os.listdir('/proc/self/fd'); return -1",
    "it changes the main module": """
        import sys
        main = sys.modules['__main__']
        for name in list(vars(main)): vars(main).setdefault('check', lambda f: None)
        def check(f): pass
        """,
    "its results equal everything": """
        class Any:
            def __eq__(self, other): return True
            def __sub__(self, other): return self
            def __rsub__(self, other): return self
            def __abs__(self): return 0.0
            def __lt__(self, other): return True
            __gt__ = __le__ = __ge__ = __lt__
            def __bool__(self): return True
            def __contains__(self, other): return True
        def square(x): return Any()
        """,
    "its results know what they are compared with": """
        class Near:
            def __eq__(self, other): self.value = other; return True
            def __sub__(self, other): return 0.0
        def square(x): return Near()
        """,
    "its numbers are of a class that agrees": """
        class Number(int):
            def __eq__(self, other): return True
            def __sub__(self, other): return 0
        def square(x): return Number(-1)
        """,
    "it kills the judge": "import os, signal\ndef square(x): os.kill(os.getppid(), signal.SIGKILL)",
    "it has the judge run its code": """
        import gc, sys
        def square(x):
            link = next(o for o in gc.get_objects() if type(o).__name__ == 'Link')
            exit = {'kind': 'library', 'module': 'builtins', 'name': 'exec'}
            for name in ('exec', 'eval', '__import__'):
                link.send({'ask': 'call', 'told': [{**exit, 'name': name}, {'kind': 'list', 'items':
                           ['__import__("os")._exit(0)']}, {'kind': 'dict', 'items': []}]})
                link.receive()
            return -1
        """,
    "it has the judge take a module of another": """
        import gc
        def square(x):
            link = next(o for o in gc.get_objects() if type(o).__name__ == 'Link')
            link.send({'return': {'kind': 'library', 'module': 'statistics', 'name': 'sys'}})
            return -1
        """,
    "it has the judge import its file": """
        import gc
        open('/box/test_x.py', 'w').write('import os; os._exit(0)')
        def square(x):
            link = next(o for o in gc.get_objects() if type(o).__name__ == 'Link')
            link.send({'return': {'kind': 'module', 'name': 'unittest.__main__'}})
        """,
    "it talks nonsense": "import os\nfor number in range(3, 64):\n    try: os.write(number, b'nonsense\\n')\n"
                         "    except OSError: pass",
    "it answers before it is asked": """
        import gc
        link = next(o for o in gc.get_objects() if type(o).__name__ == 'Link')
        for _ in range(9): link.send({'return': None, 'told': []})
        """,
}  # fmt: skip


@pytest.mark.slow
def test_no_attack_passes_its_tests():
    codes = [WRONG + textwrap.dedent(attack) for attack in ATTACKS.values()]
    outcomes = judge_all([(code, TESTS) for code in codes], limits=QUICK)
    assert [name for name, outcome in zip(ATTACKS, outcomes, strict=True) if outcome.status == "passed"] == []
    assert judged(("def square(x): return x * x", TESTS))[0].status == "passed"


def test_no_text_of_the_code_is_run_by_the_judge_that_passes_it_on():
    tests = "assert decode(encode('a')) == 'a'\n"
    end = "__import__('os')._exit(0)"
    hints = f"class Hinted:\n    __annotations__ = {{'a': {end!r}}}\n"
    codes = [
        f"decode = eval\ndef encode(s): return {end!r}",
        f"decode = exec\ndef encode(s): return {end!r}",
        f"from typing import get_type_hints as decode\n{hints}def encode(s): return Hinted()",
        f"def encode(s): return {end!r}\nclass C:\n    decode = eval\ndecode = C().decode",
    ]
    assert [outcome.status for outcome in judged(*((code, tests) for code in codes))] == ["failed"] * 4
    [outcome] = judged(("def encode(s): return repr(s)\ndecode = eval", tests))
    assert outcome.status == "passed", outcome.stderr
    module = (f"import builtins as coder\ndef encode(s): return {end!r}", "coder.eval(encode('a'))\nassert False")
    assert [outcome.status for outcome in judged(module)] == ["failed"]


@pytest.mark.slow
def test_what_right_code_may_do_passes():
    outcomes = judged(
        ("def f(x): x.append(1); return (x, {1: 2.5}, {3}, 'é\\udc80', b'a', 10 ** 5000, 1j, None)",
         """
         given = [0]
         assert f(given) == ([0, 1], {1: 2.5}, {3}, 'é\\udc80', b'a', 10 ** 5000, 1j, None)
         assert given == [0, 1]
         """),
        ("""
         class Vector:
             def __init__(self, x): self.x = x
             def __mul__(self, k): return Vector(self.x * k)
             def __eq__(self, other): return self.x == other.x
             def __len__(self): return 3
             def __getitem__(self, i): return i
         """,
         """
         v = Vector(2)
         v.x = 3
         assert v * 2 == Vector(6) != Vector(5) and (v * 2).x == 6
         assert isinstance(v, Vector) and len(v) == 3 and v[1] == 1
         """),
        ("def f(g, xs, node): node.next = g(node.value); return [g(x) for x in xs]",
         """
         class Node:
             value = 5
         node = Node()
         assert f(lambda x: x + 1, iter([1, 2]), node) == [2, 3] and node.next == 6
         """),
        ("""
         class Wrong(ValueError): pass
         def f(x):
             raise Wrong('no') if x else KeyError(x)
         """,
         """
         for kind in (ValueError, Wrong):
             try: f(1)
             except kind as error: assert str(error) == 'no'
             else: raise AssertionError
         try: f(0)
         except KeyError as error: assert error.args == (0,)
         """),
        ("""
         import math
         from collections import Counter, deque, namedtuple
         from fractions import Fraction
         Point = namedtuple('Point', 'x y')
         def f(): return Counter('aab'), deque([1]), Fraction(1, 3), Point(1, 2), (i * i for i in range(3))
         """,
         """
         counts, queue, third, point, squares = f()
         assert counts == {'a': 2, 'b': 1} and queue == deque([1]) and third == Fraction(1, 3)
         assert point == (1, 2) and point.x == 1 and list(squares) == [0, 1, 4] and math.isclose(third * 3, 1)
         """),
        ("def sum(a, b): return a + b", "assert sum(10, 15) == 25"),
        ("def f(): print('said')", """
         import contextlib, io
         with contextlib.redirect_stdout(io.StringIO()) as seen: f()
         assert seen.getvalue() == 'said\\n'
         """),
        ("import unittest", """
         import unittest
         class Case(unittest.TestCase):
             def test_it(self): self.assertEqual(1, 1)
         assert unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(Case)).wasSuccessful()
         """),
    )  # fmt: skip
    assert [(outcome.status, outcome.stderr[-300:]) for outcome in outcomes if outcome.status != "passed"] == []


@pytest.mark.slow
def test_an_outcome_says_what_became_of_the_tests():
    outcomes = judged(
        ("def f(): return 1", "assert f() == 2"), ("def f(:", "pass"), ("raise SystemExit", "pass"),
        ("x = []\nwhile True: x.append(bytearray(1 << 20))", "pass"), ("def f(): return 1", "raise SystemExit(0)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "pass"), ("while True: pass", "pass"),
        ("def f(): return 1", "if __name__ == '__main__':\n    assert f() == 2"),
    )  # fmt: skip
    assert [(outcome.status, outcome.exit_code) for outcome in outcomes] == [
        ("failed", 1), ("failed", 1), ("failed", ENDED), ("memory", 1), ("failed", ENDED), ("killed", None),
        ("timeout", None), ("failed", 1),
    ]  # fmt: skip
    assert "AssertionError" in outcomes[0].stderr and "SyntaxError" in outcomes[1].stderr
