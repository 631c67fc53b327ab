"""Runs in mergekit's environment: one order a line on standard input, and one line back when it is done.

An order is JSON: ``{"recipe": YAML file, "output": folder}`` is what `mergekit-yaml` does, and ``{"method": name,
"parameters": {...}, "tensors": file, "output": file}`` merges tensors that a file holds: "base", "tuned.0", … and, for
methods that draw, what they shall draw: "mask.0", ….  A line back is "done", or what went wrong.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from unittest.mock import patch

replies, sys.stdout = sys.stdout, sys.stderr  # whatever else prints must not stand among the replies

import torch  # noqa: E402
import yaml  # noqa: E402
from mergekit import merge_methods  # noqa: E402
from mergekit.config import MergeConfiguration  # noqa: E402
from mergekit.merge import run_merge  # noqa: E402
from mergekit.merge_methods.base import TensorGroup  # noqa: E402
from mergekit.options import MergeOptions  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402


def main() -> None:
    """Obey until standard input ends."""
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if "recipe" in order:
                config = MergeConfiguration.model_validate(yaml.safe_load(Path(order["recipe"]).read_text()))
                run_merge(config, order["output"], MergeOptions(quiet=True, random_seed=0, write_model_card=False))
            else:
                merge_tensors(order)
            reply = "done"
        except Exception as error:
            reply = f"{type(error).__name__}: {error}".replace("\n", " ")
        print(reply, file=replies, flush=True)


def merge_tensors(order: dict) -> None:
    """Merge one tensor; its inputs are called "base", "0", "1", ….  A base of null is one that is not given."""
    tensors = load_file(order["tensors"])
    tuned = list(numbered("tuned", tensors))
    given = ([tensors["base"]] if order["with_base"] else []) + tuned
    names = (["base"] if order["with_base"] else []) + [str(number) for number in range(len(tuned))]
    group = TensorGroup.from_tensors(given, ids=names, base_index=0 if order["with_base"] else None)
    with drawing(list(numbered("mask", tensors))):
        [merged] = merge_methods.get(order["method"])([group], parameters=order["parameters"])
    save_file({"merged": merged.contiguous()}, order["output"])


def numbered(name: str, tensors: dict) -> Iterator[torch.Tensor]:
    """Yield name.0, name.1, … as far as there are any."""
    for number in count():
        if (key := f"{name}.{number}") not in tensors:
            return
        yield tensors[key]


@contextmanager
def drawing(masks: list) -> Iterator[None]:
    """Let torch.bernoulli return these, in turn, and none be left over."""
    if not masks:
        yield
        return
    left = list(masks)
    with patch("torch.bernoulli", lambda chances: left.pop(0).reshape(chances.shape).to(chances.dtype)):
        yield
    assert not left, f"{len(left)} masks were not drawn"


if __name__ == "__main__":
    main()
