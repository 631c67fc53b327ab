"""What tasks need besides lm-eval, and IFEval by lm-eval's own definition on prompts of our own."""

import json

import pytest

from evals.answer import asks, no_price
from evals.assets import AssetError
from evals.lm_harness import load_task
from evals.lm_needs import lacking_package, lacking_words
from tests.evals.lm_task_files import GENERATIVE, SUMS, Says, task_file

pytestmark = pytest.mark.filterwarnings("default")  # of datasets and nltk, when they are imported

PROMPTS = [
    {"key": 1, "prompt": "Greet me without commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {"key": 2, "prompt": "Greet me in lower case.", "instruction_id_list": ["change_case:english_lowercase"],
     "kwargs": [{}]},
    {"key": 3, "prompt": "Greet me in two sentences at least, without commas.",
     "instruction_id_list": ["length_constraints:number_sentences", "punctuation:no_comma"],
     "kwargs": [{"relation": "at least", "num_sentences": 2}, {}]},
]  # fmt: skip
GREETINGS = ["Hello there, friend.", "hello there my friend.", "Hello there. How are you today?"]


@pytest.fixture
def nltk_data(tmp_path, monkeypatch):
    """nltk's data folder, with a sentence splitter that was trained on a few sentences."""
    import nltk
    from nltk.tokenize.punkt import PunktTrainer, save_punkt_params

    place = tmp_path / "nltk_data/tokenizers/punkt_tab/english"
    place.mkdir(parents=True)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk_data")])
    save_punkt_params(PunktTrainer("Hello there. How are you? I am well.").get_params(), str(place))


def ifeval(folder):
    (folder / "train.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    return load_task("ifeval", version=None, options={"data": str(folder)})


def test_ifeval_follows_its_own_checks_by_prompt_and_by_instruction(tmp_path, nltk_data):
    task, said = ifeval(tmp_path), dict(zip((p["prompt"] for p in PROMPTS), GREETINGS, strict=True))
    wanted = list(asks(task.questions(), identity="m", sampling=task.sampling))
    model = Says(lambda instance: said[instance.doc["prompt"]])
    done = task.harness.measure(list(task.harness.answers(wanted, identity="m", model=model, cost=no_price)))
    found = {a.metric: (a.value, a.is_mean) for a in done.aggregates}
    assert found["prompt_level_strict_acc"] == (pytest.approx(2 / 3), True)
    assert found["inst_level_strict_acc"] == (pytest.approx(3 / 4), True)


def test_a_task_without_the_data_of_nltk_that_it_looks_for_says_how_to_get_them_before_anything_is_asked(tmp_path):
    (tmp_path / "words.py").write_text('nltk.data.find("tokenizers/nowhere_tab")')
    file = task_file(tmp_path, GENERATIVE, SUMS, num_fewshot=0)
    with pytest.raises(AssetError, match=r"nltk\.downloader nowhere_tab.*nltk_data/tokenizers/nowhere_tab.*NLTK_DATA"):
        load_task(str(file), version=None, options={"data": str(tmp_path / "sums")}).questions()


def test_a_package_that_lacks_is_named_with_how_to_get_it():
    said = lacking_package("ruler", ModuleNotFoundError("No module named 'antlr4'", name="antlr4"))
    assert said.endswith("pip install antlr4-python3-runtime==4.11")


def test_a_task_that_looks_for_no_words_lacks_none(tmp_path):
    (tmp_path / "utils.py").write_text("import nltk\n")
    assert lacking_words("t", tmp_path.glob("*.py")) is None
