"""What a candidate costs: its weights swapped into a running vLLM engine, against a new engine for it.

    .venv/bin/python benchmarks/swap.py CHECKPOINT_FOLDER [OTHER_FOLDER]

Both must have the same shape; `fuseval demo` leaves some in fuseval-demo/checkpoints. Prints seconds and the ratio.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 5


def main(folders: list[Path]) -> None:
    """Swap to and fro, then start a process with an engine of its own."""
    from evals.engine import EngineSettings
    from evals.local import LocalModel

    settings = EngineSettings(max_model_len=1024, kv_cache_gib=0.5)
    begun = time.perf_counter()
    model = LocalModel(folders[0], identity="start", settings=settings)
    print(f"first engine     {time.perf_counter() - begun:6.2f} s (imports included)")
    swaps = []
    for number in range(ROUNDS):
        begun = time.perf_counter()
        model.load(folders[number % len(folders)], identity=f"swap {number}")
        swaps.append(time.perf_counter() - begun)
    model.close()
    begun = time.perf_counter()
    subprocess.run([sys.executable, __file__, "--one", str(folders[0])], check=True)
    fresh = time.perf_counter() - begun
    swap = statistics.median(swaps)
    print(f"swap, median     {swap:6.2f} s")
    print(f"fresh process    {fresh:6.2f} s   {fresh / swap:.0f} x a swap")


def one(folder: Path) -> None:
    """Start an engine, as a process of its own would."""
    from evals.engine import EngineSettings
    from evals.local import LocalModel

    LocalModel(folder, identity="one", settings=EngineSettings(max_model_len=1024, kv_cache_gib=0.5))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    if sys.argv[1] == "--one":
        one(Path(sys.argv[2]))
    else:
        main([Path(argument) for argument in sys.argv[1:]])
