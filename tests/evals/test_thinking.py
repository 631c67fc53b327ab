import pytest

from evals.chat import ChatRequest, NoReply, Reply
from evals.records import Message, Sampling
from evals.thinking import WithoutThinking, split_thinking


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("<think>Hm.</think>Yes.", "Hm.", "Yes."),
        ("\n<think>\nHm.\nWell.\n</think>\n\nYes.\n", "Hm.\nWell.", "Yes."),
        ("<thinking>Hm.</thinking>Yes.", "Hm.", "Yes."),
        ("<reasoning>Hm.</reasoning>Yes.", "Hm.", "Yes."),
        ("<THINK>Hm.</Think>Yes.", "Hm.", "Yes."),
        ("<think>\n\n</think>\n\nYes.", "", "Yes."),  # switched off by the template
        ("<think>Hm.</think>\n<think>And.</think>Yes.", "Hm.\n\nAnd.", "Yes."),
        ("<think>Hm.</think>", "Hm.", ""),
    ],
)
def test_a_leading_block_is_thinking(text, thinking, answer):
    assert split_thinking(text) == (thinking, answer)


@pytest.mark.parametrize("text", ["<think>Hm, and then", "<thinking>Hm, and then", "\n<reasoning>\nHm, and then\n"])
def test_where_thinking_is_not_closed_there_is_no_answer(text):
    assert split_thinking(text) == ("Hm, and then", "")


def test_what_stands_before_a_closing_tag_without_its_opening_is_thinking():
    assert split_thinking("Hm.\n</think>\n\nYes.") == ("Hm.", "Yes.")
    assert split_thinking("</think>Yes.") == ("", "Yes.")


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("<think>A <think>b</think> c</think>Yes.", "A <think>b</think> c", "Yes."),
        ("<think>I open with <think> here.</think>Yes.", "I open with <think> here.", "Yes."),
        ("<think>Not <thinking> yet.</think>Yes.", "Not <thinking> yet.", "Yes."),
    ],
)
def test_thinking_may_speak_of_its_own_tag(text, thinking, answer):
    assert split_thinking(text) == (thinking, answer)


@pytest.mark.parametrize(
    "text",
    ["", "Yes.", "analysis of the text: good", "Analysis", "  Yes.\n", "gpt-oss writes <|channel|>final", "<think"],
)
def test_without_thinking_the_text_stays_as_it_is(text):
    assert split_thinking(text) == ("", text)


@pytest.mark.parametrize(
    "text",
    [
        "Reasoning models write `<think>steps</think>` first. The answer is 42.",
        "Put it between <think> and </think>; the </think> must not be left out.",
        "Either <Thinking>\na\n</Thinking> or <reasoning>b</reasoning>.",
    ],
)
def test_an_answer_that_mentions_the_tags_is_not_cut(text):
    assert split_thinking(text) == ("", text)


@pytest.mark.parametrize("answer", ["Write <think>…</think> around it.", "</think> closes it.", "analysisOf = 1"])
def test_tags_in_an_answer_after_thinking_are_its_own(answer):
    assert split_thinking("<think>Hm.</think>" + answer) == ("Hm.", answer)


HARMONY = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>"


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        (HARMONY, "Hm.", "Yes."),
        ("<|start|>assistant" + HARMONY, "Hm.", "Yes."),
        (HARMONY.replace("final", "commentary"), "Hm.\n\nYes.", ""),
        ("<|channel|>analysis<|message|>Hm, and", "Hm, and", ""),
        ("<|channel|>final<|message|>Yes.", "", "Yes."),
        ("analysisHm.assistantfinalYes.", "Hm.", "Yes."),  # decoded without special tokens
        ("analysisHm, and", "Hm, and", ""),
    ],
)
def test_of_gpt_oss_channels_the_final_one_is_the_answer(text, thinking, answer):
    assert split_thinking(text) == (thinking, answer)


class Fixed:
    def __init__(self, *replies):
        self.replies = replies

    def chat(self, requests):
        for index, _ in enumerate(requests):
            yield index, self.replies[index]


def reply(text, finish="stop", **more):
    return Reply(text, finish, 10, 20, 0.1, "m", **more)


def without(*replies, count=None):
    asked = (ChatRequest((Message("user", "hi"),), Sampling()) for _ in replies)
    return [said for _, said in WithoutThinking(Fixed(*replies), count=count).chat(asked)]


def test_thinking_is_moved_out_of_the_text_and_its_tokens_are_counted():
    [found] = without(reply("<think>a b c</think>Yes."), count=lambda text: len(text.split()))
    assert (found.text, found.thinking, found.thinking_tokens, found.output_tokens) == ("Yes.", "a b c", 3, 20)


def test_what_the_endpoint_told_apart_and_counted_stays():
    told = reply("Yes.", thinking="a b c", thinking_tokens=9)
    assert without(told, count=len) == [told]
    [counted] = without(reply("Yes.", thinking="a b c"), count=lambda text: len(text.split()))
    assert (counted.text, counted.thinking_tokens) == ("Yes.", 3)


def test_thinking_is_never_more_than_the_reply_and_uncounted_without_a_tokenizer():
    assert without(reply("<think>abc</think>Yes."), count=lambda _: 99)[0].thinking_tokens == 20
    assert without(reply("<think>abc</think>Yes."))[0].thinking_tokens == 0


def test_log_probabilities_of_the_first_token_go_with_the_thinking_that_it_began():
    said = (("A", -0.1),)
    thought, plain = without(reply("<think>Hm</think>A", top_logprobs=said), reply("A", top_logprobs=said))
    assert (thought.top_logprobs, plain.top_logprobs) == ((), said)


def test_a_reply_that_was_all_thinking_when_its_tokens_ended_is_none_and_is_paid_for():
    [found] = without(reply("<think>Hm, and then", "length", discarded=(1, 2)))
    assert isinstance(found, NoReply)
    assert (found.kind, found.discarded) == ("truncated", (11, 22))
    assert "raise" in found.message


def test_an_answer_that_its_length_cut_and_one_that_is_empty_are_replies():
    cut, empty = without(reply("<think>Hm</think>Yes, bec", "length"), reply("<think>Hm</think>"))
    assert (cut.text, empty.text) == ("Yes, bec", "")


def test_no_reply_stays_what_it_is():
    failed = NoReply("timeout", "late", 3)
    assert without(failed) == [failed]


def test_closing_it_early_closes_the_model():
    closed = []

    class Endless:
        def chat(self, _):
            try:
                while True:
                    yield 0, reply("hi")
            finally:
                closed.append(True)

    arrivals = WithoutThinking(Endless()).chat([])
    next(arrivals)
    arrivals.close()
    assert closed == [True]
