"""How long `fuseval --help` takes beside an empty Python: medians of several, run in turn.

.venv/bin/python benchmarks/startup.py
"""

import statistics
import subprocess
import sys
import time

ROUNDS = 5
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import typer": [sys.executable, "-c", "import typer"],
    "fuseval --help": [sys.executable, "-m", "fuseval", "--help"],
}


def main() -> None:
    """Print medians in seconds, and their ratios to an empty Python."""
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS + 1):
        for name, command in COMMANDS.items():
            begun = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            taken[name].append(time.perf_counter() - begun)
    empty = statistics.median(taken["python -c pass"][1:])
    for name, seconds in taken.items():  # the first round only warms the disk cache
        median = statistics.median(seconds[1:])
        print(f"{name:16} {median:6.3f} s   {median / empty:5.1f} x an empty Python")


if __name__ == "__main__":
    main()
