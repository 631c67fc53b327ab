"""Keys never change: what a ledger holds is found again under them."""

from evals.benchmark import changed, judge_request, published_answer, published_model
from evals.keys import content_key
from evals.records import Message, Question, Sampling

QUESTION = Question("mt_bench", "1", "81", "writing", ("Why?", "Still?"), None, ("So.",))
MODEL, BASELINE = published_model("vicuña-7b").id, published_model("gpt-4-0314").id
TEXT = "Because \u201cquoted\u201d\n\ttext \x00 and \ud800."


def test_models_have_the_keys_they_had():
    assert MODEL == "dce0304771e791ab9e75c95086b4a3a1"


def test_answers_have_the_keys_they_had():
    first = published_answer(QUESTION, model=MODEL, turn=1, text=TEXT)
    empty = published_answer(QUESTION, model=BASELINE, turn=1, text="")
    assert (first.key, empty.key) == ("a16bb9bc2d61595e2e9f05bf51bcfc1c", "9372363a7efac2d692bdabb3fba6d074")


def test_requests_and_judgments_have_the_keys_they_had():
    request = judge_request(
        QUESTION,
        judge=BASELINE,
        answers=[
            published_answer(QUESTION, model=MODEL, turn=1, text=TEXT),
            published_answer(QUESTION, model=BASELINE, turn=1, text=""),
        ],
        order="model_first",
        messages=(Message("system", "Judge."), Message("user", "A: é ≠ e")),
        sampling=Sampling(temperature=0.7, stop=("\n", "</s>")),
        reply="pair",
    )
    assert (request.key, request.judgment) == ("916cc20d487a5d75af5a8f41b86a1fd5", "8f629c584cc525ce0a5f37729adef671")
    again = changed(request, sampling=Sampling(temperature=1, top_p=0.9, seed=3))
    assert (again.key, again.judgment) == ("b6c769a6e667cfeed83f90d0ee2f5a5e", "2c74de5fab248d10a49554078d94525e")


def test_parts_of_every_kind_have_the_key_they_had():
    numbers = (True, 1, 1.0, -0.0, 1e300, float("inf"))
    key = content_key("z", None, *numbers, ("a", ["b", ()]), {"b": 1, "a": {2: None}}, Sampling())
    assert key == "44e4dab374315f51f31c4a99936b24e2"
