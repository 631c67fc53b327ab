"""Finding lm-eval's tasks, and putting local files in the place of their data."""

import pytest

from evals.assets import AssetError
from evals.catalog import UnknownBenchmark, find_benchmark
from evals.lm_options import TaskOptions
from evals.lm_tasks import build, data_files, find_definitions, version_of
from tests.evals.lm_task_files import GENERATIVE, SUMS, task_file

pytestmark = pytest.mark.filterwarnings("default")

# The tasks of FuseChat-3.0's evaluation (arXiv:2503.04222), as lm-eval has them, and how many tasks each is.
FUSECHAT3 = {
    "gsm8k": 1,
    "hendrycks_math": 7,
    "minerva_math": 7,
    "mmlu_pro": 14,
    "mmlu_redux_generative": 57,
    "gpqa_diamond_cot_zeroshot": 1,
    "ifeval": 1,
    "humaneval": 1,
    "mbpp": 1,
    "aime24": 1,
}


@pytest.mark.parametrize("task", FUSECHAT3)
def test_fusechat_3s_tasks_are_found_with_all_their_parts(task):
    name, definitions = find_definitions(task)
    assert (name, len(definitions)) == (task, FUSECHAT3[task])
    assert all(each.evaluated for each in definitions)


def test_gsm8k_runs_from_a_local_file_by_its_own_definition(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"question": "1 + 2?", "answer": "1 + 2 = 3\\n#### 3"}\n' * 3)
    [definition] = find_definitions("gsm8k")[1]
    task = build(definition, TaskOptions(data=str(tmp_path), num_fewshot=0))
    assert task.doc_to_text(task.eval_docs[0]) == "Question: 1 + 2?\nAnswer:"
    assert [each.name for each in task._filters] == ["strict-match", "flexible-extract"]


def test_examples_from_a_split_that_local_data_lack_are_refused_with_the_ways_out(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"question": "1 + 2?", "answer": "3"}\n')
    [definition] = find_definitions("gsm8k")[1]
    with pytest.raises(AssetError, match=r"5 examples from split 'train'.*num_fewshot: 0, or fewshot_split: test"):
        build(definition, TaskOptions(data=str(tmp_path)))


def test_a_task_that_says_no_examples_keeps_that():
    [humaneval] = find_definitions("humaneval")[1]
    assert humaneval.shots(TaskOptions(num_fewshot=3)) == 0


def test_versions_read_as_the_tasks_own_and_hold_the_examples():
    assert version_of(find_definitions("gsm8k")[1], TaskOptions()).startswith("3.0-5shot-")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("lm_eval:gsm8kk", {}, "has no task 'gsm8kk'; near it are gsm8k"),
        ("lm_eval:nowhere.yaml", {}, "there is no lm-eval task file nowhere.yaml"),
        ("lm_eval:gsm8k", {"shots": 2}, "has no option 'shots'; it has num_fewshot"),
        ("lm_eval:gsm8k", {"num_fewshot": "2"}, "num_fewshot of an lm-eval task is '2'; it must be a whole number"),
        ("lm_eval:gsm8k", {"backend": "sglang"}, "there are engine, hf"),
        ("lm_eval:gsm8k@1.0", {}, "has version '3.0-5shot-"),
    ],
)
def test_mistakes_name_the_value_and_what_there_is(name, options, said):
    with pytest.raises(UnknownBenchmark, match=said):
        find_benchmark(name, asset=lambda _: None, options=options)


def test_data_that_cannot_be_had_say_how_to_give_a_local_copy(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    file = task_file(tmp_path, GENERATIVE, SUMS)
    with pytest.raises(AssetError, match=r"\(nobody/sums\) cannot be had.*options: \{data: FOLDER\}"):
        build(find_definitions(str(file))[1][0], TaskOptions())


def test_a_folders_files_are_splits_by_their_names_and_a_lone_file_is_the_one_asked_about(tmp_path):
    (tmp_path / "HumanEval.jsonl").touch()
    assert set(data_files(str(tmp_path), evaluated="test")) == {"test"}
    (tmp_path / "train.jsonl").touch()
    assert set(data_files(str(tmp_path), evaluated="test")) == {"HumanEval", "train"}
    with pytest.raises(AssetError, match="no file of data"):
        data_files(str(tmp_path / "gone"), evaluated="test")


def test_a_task_whose_own_python_evaluates_text_is_refused_and_others_are_not():
    from evals.lm_tasks import find_definitions

    told = {name: any(d.runs_text for d in find_definitions(name)[1]) for name in ("score_robustness_math", "gsm8k")}
    assert told == {"score_robustness_math": True, "gsm8k": False}
