"""Who may import whom: every import of every room, held against the table of docs/architecture.md."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

MAY_KNOW = {
    "fuseval": {"fusion", "evals", "judges", "results", "reports"},
    "fusion": set(),
    "evals": set(),
    "judges": {"evals"},
    "results": {"evals.records", "evals.keys"},
    "reports": {"evals", "results"},
}

# What takes a noticeable part of a second to import has no place at the top of a file that `fuseval --help` reads.
HEAVY = {"torch", "transformers", "trl", "vllm", "lm_eval", "alpaca_eval", "matplotlib", "pandas", "datasets", "duckdb"}
HEAVY |= {"numpy", "pydantic", "openai", "pooch", "ray", "rich", "jinja2", "yaml"}


def imports(file: Path, *, top_level: bool = False) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = tree.body if top_level else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write imports out in full"
            found.add(str(node.module))
    return found


@pytest.mark.parametrize("room", MAY_KNOW)
def test_a_room_imports_only_the_rooms_that_it_may_know(room):
    for file in (ROOT / room).rglob("*.py"):
        for module in imports(file):
            other = module.partition(".")[0]
            if other in MAY_KNOW and other != room:
                allowed = any(module == name or module.startswith(name + ".") for name in MAY_KNOW[room])
                assert allowed, (
                    f"{file.relative_to(ROOT)} imports {module}; {room}/ may know {MAY_KNOW[room] or 'none'}"
                )


def test_every_package_of_the_repository_has_its_line_in_the_table():
    assert {file.parent.name for file in ROOT.glob("*/__init__.py")} == set(MAY_KNOW)


def test_the_command_line_imports_nothing_heavy_before_it_knows_what_is_wanted():
    seen, waiting = set(), [ROOT / "fuseval/cli.py"]
    while waiting:
        file = waiting.pop()
        for module in imports(file, top_level=True):
            assert module.partition(".")[0] not in HEAVY, f"{file.relative_to(ROOT)} imports {module} at its top"
            other = ROOT / (module.replace(".", "/") + ".py")
            if other.exists() and other not in seen:
                seen.add(other)
                waiting.append(other)


def test_only_the_command_line_and_its_terminal_print_or_exit():
    for room in MAY_KNOW:
        for file in (ROOT / room).rglob("*.py"):
            if file.name in ("cli.py", "cli_ledger.py", "terminal.py"):
                continue
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    assert ast.unparse(node.func) not in ("print", "sys.exit", "exit"), f"{file}:{node.lineno}"
