"""Answers that must lose, and requests that are put to a judge twice."""

from dataclasses import replace

from evals.benchmark import judge_request, published_answer
from evals.records import Message, Model, Question, Sampling
from fuseval.controls import CONSTANT, constant_control, control_requests, retest_of, retests, shuffled_control

QUESTIONS = tuple(Question("b", "1", f"q{n}", "c", ("first",) * (1 + n % 2)) for n in range(5))
JUDGE = Model("judge-id", "gpt", "endpoint", "somewhere")


def said(question, text, model="base"):
    return tuple(
        published_answer(question, model=model, turn=t, text=f"{text} {t}") for t, _ in enumerate(question.turns, 1)
    )


def request(question, answers, judge="judge-id"):
    return judge_request(
        question, judge=judge, answers=answers, order="single", messages=(Message("user", answers[0].text),),
        sampling=Sampling(), reply="rating",
    )  # fmt: skip


def test_one_control_says_the_same_to_every_question_in_every_turn():
    control = constant_control(QUESTIONS)
    assert {answer.text for answers in control.answers.values() for answer in answers} == {CONSTANT}
    assert [len(control.answers[q.id]) for q in QUESTIONS] == [1, 2, 1, 2, 1]
    assert control.model.kind == "control"


def test_the_other_gives_the_bases_answer_to_another_question_with_as_many_turns():
    answers = {q.id: said(q, q.id) for q in QUESTIONS[:4]}  # q4 is not answered
    control = shuffled_control(QUESTIONS, answers)
    texts = {id_: [answer.text for answer in found] for id_, found in control.answers.items()}
    assert texts == {"q0": ["q2 1"], "q2": ["q0 1"], "q1": ["q3 1", "q3 2"], "q3": ["q1 1", "q1 2"]}
    assert all(answer.question == id_ for id_, found in control.answers.items() for answer in found)


def test_an_answer_alone_of_its_kind_has_no_other_to_stand_for_it():
    assert not shuffled_control(QUESTIONS[:2], {q.id: said(q, "x") for q in QUESTIONS[:2]}).answers


def test_controls_are_asked_about_like_answers():
    control = constant_control(QUESTIONS[:2])
    asked = list(
        control_requests(
            [control],
            questions=QUESTIONS,
            beside=lambda q: said(q, "base"),
            ask=lambda q, answers, beside: [request(q, [answers[0], beside[0]])],
        )
    )
    assert [(r.question, r.model, r.baseline) for r in asked] == [
        ("q0", control.model.id, "base"),
        ("q1", control.model.id, "base"),
    ]


def test_a_retest_is_the_same_request_to_another_judge_and_so_a_judgment_of_its_own():
    requests = [request(q, said(q, "x", model)) for model in ("one", "two") for q in QUESTIONS[:3]]
    again = retest_of(JUDGE)
    found = list(retests(iter(requests), judge=again.id, questions=["q0", "q1"], models=["one", "two"]))
    repeated = [r for r in found if r.judge == again.id]
    assert [r for r in found if r.judge == JUDGE.id] == requests
    assert [(r.question, r.model) for r in repeated] == [("q0", "one"), ("q1", "two")]
    for one in repeated:
        [first] = [r for r in requests if (r.question, r.model) == (one.question, one.model)]
        assert replace(one, judge=first.judge, key=first.key, judgment=first.judgment) == first
        assert one.judgment != first.judgment
        assert one.key != first.key
    assert (again.kind, again.parent) == ("retest", JUDGE.id)
