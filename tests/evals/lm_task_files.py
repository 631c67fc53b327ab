"""Small tasks in lm-eval's own format with their data, and models that say what a test wants."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

SUMS = [{"question": f"{a} + {b}", "answer": str(a + b)} for a in range(2, 6) for b in range(3, 6)]
COLOURS = [
    {"text": f"A {thing} is", "options": ["red", "green", "blue"], "right": right}
    for thing, right in (("tomato", 0), ("leaf", 1), ("sea", 2), ("rose", 0), ("frog", 1), ("sky", 2))
]
GENERATIVE = {
    "task": "sums",
    "dataset_path": "nobody/sums",
    "training_split": "train",
    "fewshot_split": "train",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n", "Question:"], "max_gen_toks": 8},
    "num_fewshot": 2,
    "filter_list": [
        {"name": "last", "filter": [{"function": "regex", "group_select": -1, "regex_pattern": "([0-9]+)"},
                                    {"function": "take_first"}]},
        {"name": "first", "filter": [{"function": "regex", "regex_pattern": "([0-9]+)"}, {"function": "take_first"}]},
    ],
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.0},
}  # fmt: skip
CHOICE = {
    "task": "colours",
    "dataset_path": "nobody/colours",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{text}}",
    "doc_to_choice": "options",
    "doc_to_target": "right",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
    "metadata": {"version": 2.0},
}
CODE = {
    "task": "code",
    "dataset_path": "nobody/code",
    "unsafe_code": True,
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{prompt}}",
    "doc_to_target": "{{test}}",
    "generation_kwargs": {"until": ["\nclass"], "max_gen_toks": 8},
    "metadata": {"version": 1.0},
}


def task_file(folder: Path, definition: dict[str, Any], docs: Sequence[dict[str, Any]], **changes: Any) -> Path:
    """Write a task and, in a folder of its name, its data; return the task's file."""
    told = {**definition, **changes}
    data = folder / told["task"]
    data.mkdir(exist_ok=True)
    (data / "test.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    file = folder / f"{told['task']}.yaml"
    file.write_text(yaml.safe_dump(told))
    return file


class Says:
    """A model that answers a request of lm-eval by a function of it."""

    def __init__(self, reply: Callable[[Any], Any]) -> None:
        self.reply, self.asked = reply, []

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return the turns as marked lines."""
        return "".join(f"<{turn['role']}>{turn['content']}" for turn in chat_history) + "<assistant>"

    def respond(self, wishes: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yield the last first, since batches end in any order."""
        from evals.chat import NoReply
        from evals.lm_model import Response

        for number in reversed(range(len(wishes))):
            self.asked.append(wishes[number].instance)
            said = self.reply(wishes[number].instance)
            yield number, said if isinstance(said, NoReply) else Response(said)
