from dataclasses import replace

from evals.answer import answer, item_seed, no_price, stored_answers
from evals.chat import NoReply, Reply
from evals.records import Answer, Failure, Question, Sampling


class Parrot:
    """Says the last message again; fails where it reads "fail"; remembers what it was asked."""

    def __init__(self):
        self.batches = []

    def chat(self, requests):
        self.batches.append(list(requests))
        for index, request in enumerate(self.batches[-1]):
            said = request.messages[-1].content
            if "fail" in said:
                yield index, NoReply("timeout", "no reply", 3)
            else:
                yield index, Reply(f"you said {said}", "stop", 1, 1, 0.1, "parrot")


def question(name, *turns):
    return Question("b", "1", name, "c", turns)


def ask(questions, model, known=None, cost=no_price, **sampling):
    known = {} if known is None else known
    records = answer(
        questions,
        identity="m",
        model=lambda: model,
        sampling=lambda _: Sampling(**sampling),
        stored=lambda keys: {k: known[k] for k in keys if k in known},
        cost=cost,
    )
    found = []
    for record in records:
        found.append(record)
        if isinstance(record, Answer):
            known[record.key] = record
    return found


QUESTIONS = [question("q1", "one"), question("q2", "two", "three"), question("q3", "four")]


def test_all_first_turns_are_one_batch_and_all_second_turns_the_next():
    model = Parrot()
    found = ask(QUESTIONS, model)
    assert [len(batch) for batch in model.batches] == [3, 1]
    assert [(a.question, a.turn) for a in found] == [("q1", 1), ("q2", 1), ("q3", 1), ("q2", 2)]


def test_a_second_turn_sees_what_was_said_in_the_first():
    model = Parrot()
    ask(QUESTIONS, model)
    assert [m.content for m in model.batches[1][0].messages] == ["two", "you said two", "three"]


def test_what_is_stored_is_not_asked_and_the_model_is_not_even_started():
    known = {}
    ask(QUESTIONS, Parrot(), known)
    assert ask(QUESTIONS, None, known) == []


def test_a_run_killed_after_any_answer_ends_as_an_uninterrupted_one():
    whole = {}
    ask(QUESTIONS, Parrot(), whole)
    for survived in range(4):
        known = dict(list(whole.items())[:survived])
        ask(QUESTIONS, Parrot(), known)
        assert known == whole


def test_a_failed_turn_is_a_failure_record_and_its_next_turn_is_not_asked():
    found = ask([question("q", "please fail", "and then?")], Parrot())
    assert found == [Failure(found[0].key, "answer", "m", "b", "q", "timeout", "no reply", 3)]


def test_answers_and_failures_know_what_they_cost():
    def price(reply):
        return 0.25 if isinstance(reply, NoReply) else reply.output_tokens * 2.0

    found = ask([question("q", "say"), question("p", "fail")], Parrot(), cost=price)
    assert [record.cost for record in found] == [2.0, 0.25]
    assert ask([question("q", "say")], Parrot())[0].cost is None


def test_thinking_is_kept_beside_the_answer_and_not_shown_in_the_next_turn():
    class Thinker(Parrot):
        def chat(self, requests):
            for index, reply in super().chat(requests):
                yield index, replace(reply, thinking="hm", thinking_tokens=1)

    model = Thinker()
    first, second = ask([question("q", "one", "two")], model)
    assert (first.thinking, first.thinking_tokens, second.thinking) == ("hm", 1, "hm")
    assert [m.content for m in model.batches[1][0].messages] == ["one", "you said one", "two"]


def test_requests_are_made_as_the_model_takes_them():
    class Slow:
        def chat(self, requests):
            self.given = requests
            yield from Parrot().chat(requests)

    model = Slow()
    ask(QUESTIONS[:1], model)
    assert iter(model.given) is model.given


def test_another_temperature_seed_or_model_text_is_another_answer():
    keys = {ask(QUESTIONS[:1], Parrot(), temperature=t, seed=s)[0].key for t in (0.0, 0.7) for s in (0, 1)}
    keys.add(ask([replace(QUESTIONS[0], system="Be brief.")], Parrot())[0].key)
    assert len(keys) == 5


def test_equal_prompts_of_one_run_do_not_share_a_random_stream():
    model = Parrot()
    ask([question("a", "same"), question("b", "same")], model, temperature=1.0)
    first, second = (request.sampling.seed for request in model.batches[0])
    assert first != second
    assert item_seed(0, "b", "a", 1) == first


def test_only_questions_with_every_turn_stored_count_as_answered():
    known = {}
    ask(QUESTIONS, Parrot(), known)
    second_turn = next(k for k, a in known.items() if a.turn == 2)
    del known[second_turn]
    found = stored_answers(
        QUESTIONS,
        identity="m",
        sampling=lambda _: Sampling(),
        stored=lambda keys: {k: known[k] for k in keys if k in known},
    )
    assert set(found) == {"q1", "q3"}
