"""Who of several engines is handed what, with engines that are played: how they answer, and when they die.

tests/fuseval/test_ray.py has the real ones.
"""

import itertools
import json
import types

import pytest

from evals.chat import ChatError
from evals.replica import About, Replica
from evals.replicas import LOSSES, Lost, Replicas

BATCH = 4


class Model:
    """Plays LocalModel: says each request back, after the identity of the weights that are in."""

    context, batch = 100, BATCH

    def __init__(self, folder, *, identity, settings):
        self.identity, self.most = identity, 0

    def load(self, folder, *, identity):
        self.identity = identity

    def stream(self, tensors, *, like, identity):
        self.identity = f"{identity} {dict(tensors)}"

    def chat(self, requests):
        waiting, running = iter(enumerate(requests)), []
        while True:
            while len(running) < 100 and (taken := next(waiting, None)) is not None:
                running.append(taken)
            if not running:
                return
            self.most = max(self.most, len(running))
            index, request = running.pop(0)
            yield index, f"{self.identity}: {request}"

    def complete(self, prompts):
        for index, text in self.chat(prompts):
            yield index, text.upper()


class Crew:
    """Plays Ray, one call at a time, the calls of other replicas first; ``dies`` says at which call of "advance"."""

    def __init__(self, dies=(), broken=""):
        self.dies, self.broken = set(dies), broken
        self.replicas, self.queue, self.laid, self.advanced = [], [], None, itertools.count(1)

    def start(self):
        self.replicas.append(types.SimpleNamespace(worker=Replica(None, Model), ended=False, asked=[]))
        return self.replicas[-1]

    def call(self, replica, method, *args):
        ticket = object()
        self.queue.append((ticket, replica, method, args))
        return ticket

    def wait(self, tickets, *, seconds):
        assert set(tickets) <= {ticket for ticket, *_ in self.queue}
        return [next(ticket for ticket, *_ in self.queue if ticket in tickets)]

    def result(self, ticket):
        [(_, replica, method, args)] = [each for each in self.queue if each[0] is ticket]
        self.queue = [each for each in self.queue if each[0] is not ticket]
        if method == "begin" and self.broken:
            raise ChatError(self.broken)
        if method == "advance":
            replica.asked += [request for _, request in args[1]]
            if next(self.advanced) in self.dies:
                raise Lost("OutOfMemoryError: 7 GB")
        if method == "stream_shared":
            return replica.worker.stream(self.laid[args[0]], *args[1:])
        return getattr(replica.worker, method)(*args)

    def share(self, tensors):
        self.laid = [list(tensors)]
        return 0

    def end(self, replica):
        replica.ended = True

    def shortage(self):
        return "each takes 8 GPU and there are 2"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"layers": 2}))
    return tmp_path


def replicas(folder, crew, count=2, **how):
    return Replicas(folder, identity="m", count=count, crew=crew, **how)


def answers(model, count=50):
    found = list(model.chat(iter(range(count))))
    assert len(found) == len(dict(found)), "something came twice"
    return dict(found)


def test_every_request_is_answered_once_and_under_its_own_number(folder):
    assert answers(replicas(folder, Crew())) == {n: f"m: {n}" for n in range(50)}


def test_no_engine_is_handed_much_more_than_its_batch(folder):
    crew = Crew()
    answers(replicas(folder, crew))
    assert max(replica.worker.model.most for replica in crew.replicas) == 1.5 * BATCH


def test_few_requests_are_shared_out_evenly(folder):
    crew = Crew()
    answers(replicas(folder, crew, count=3), count=6)
    assert [len(replica.asked) for replica in crew.replicas] == [2, 2, 2]


@pytest.mark.parametrize("dies", [[1], [2], [1, 2], [1, 3, 5], [4, 6]])
def test_a_lost_engine_is_replaced_and_the_answers_are_the_same(folder, dies):
    crew, heard = Crew(dies=dies), []
    model = replicas(folder, crew, hear=lambda done, total, note: heard.append(note))
    assert answers(model) == answers(replicas(folder, Crew()))
    assert len(crew.replicas) == 2 + len(dies)
    assert sum(replica.ended for replica in crew.replicas) == len(dies)
    assert any("of 2 was lost and is replaced: OutOfMemoryError: 7 GB" in note for note in heard)


def test_an_engine_that_is_lost_again_and_again_stops_the_run_and_is_named(folder):
    model = replicas(folder, Crew(dies=range(1, 100)), count=1)
    with pytest.raises(ChatError, match=rf"replica 1 of 1 was lost {LOSSES} times .* OutOfMemoryError: 7 GB"):
        answers(model)
    assert not model.fits(folder)  # so that whoever goes on starts new ones


def test_losses_with_work_done_in_between_do_not_stop_it(folder):
    assert len(answers(replicas(folder, Crew(dies=range(2, 20, 2)), count=1))) == 50


def test_a_model_that_cannot_be_started_is_not_tried_again(folder):
    crew = Crew(broken="vLLM cannot run it")
    with pytest.raises(ChatError, match="vLLM cannot run it"):
        answers(replicas(folder, crew))
    assert len(crew.replicas) == 2


def test_engines_that_find_no_machine_are_said_with_what_they_take(folder):
    crew, waited, heard = Crew(), [], []
    crew.wait = lambda tickets, *, seconds: waited.append(seconds) or []
    with pytest.raises(ChatError, match="no engine has started within 1800 s: each takes 8 GPU and there are 2"):
        answers(replicas(folder, crew, hear=lambda done, total, note: heard.append((done, total, note))))
    assert waited == [120, 1680]
    assert heard == [
        (0, 2, "none has started after 120 s; if there is no room for them: each takes 8 GPU and there are 2")
    ]


def test_other_weights_are_in_every_engine_before_it_is_asked_and_in_those_that_replace_it(folder):
    model = replicas(folder, Crew(dies=[3]))
    answers(model, count=5)
    model.load(folder, identity="other")
    assert answers(model) == {n: f"other: {n}" for n in range(50)}


def test_streamed_weights_are_laid_out_once_for_all_and_for_those_that_come_later(folder):
    crew = Crew(dies=[3, 4])
    model = replicas(folder, crew)
    answers(model, count=1)
    taken = iter([("w", 1)])
    model.stream(taken, like=folder, identity="merged")
    assert answers(model) == {n: f"merged {{'w': 1}}: {n}" for n in range(50)}
    assert list(taken) == []


def test_a_stream_that_breaks_off_leaves_nothing_to_be_asked(folder):
    def broken():
        yield "w", 1
        raise OSError("disk gone")

    model = replicas(folder, Crew())
    with pytest.raises(ChatError, match="cannot be had: disk gone"):
        model.stream(broken(), like=folder, identity="merged")
    with pytest.raises(ChatError, match="load others"):
        answers(model)


def test_leaving_early_leaves_the_engines_usable(folder):
    model = replicas(folder, Crew())
    begun = model.chat(iter(range(1000, 1050)))
    next(begun)
    begun.close()
    assert answers(model) == {n: f"m: {n}" for n in range(50)}


def test_what_the_caller_raises_in_the_midst_of_its_requests_is_its_own(folder):
    def asked():
        yield 1
        raise KeyError("mine")

    model = replicas(folder, Crew())
    with pytest.raises(KeyError, match="mine"):
        list(model.chat(asked()))
    assert len(answers(model)) == 50


def test_the_context_is_known_once_the_first_engine_is_there(folder):
    assert replicas(folder, Crew()).context == 100


def test_a_moment_gathers_what_is_done_and_an_engine_without_work_says_so():
    replica = Replica(None, Model)
    assert replica.begin("m", "m") == About(100, BATCH, replica.begin("m", "m").pid)
    assert replica.advance("chat", [(7, "a"), (3, "b")]) == [(7, "m: a"), (3, "m: b")]
    assert replica.advance("chat", [(9, "c")]) == [(9, "m: c")]


def test_an_engine_whose_last_reply_came_at_the_end_of_a_moment_can_be_asked_another_way(monkeypatch):
    monkeypatch.setattr("evals.replica.MOMENT", 0.0)
    replica = Replica(None, Model)
    replica.begin("m", "m")
    assert replica.advance("chat", [(1, "a")]) == [(1, "m: a")]
    assert replica.advance("complete", [(7, "b")]) == [(7, "M: B")]
