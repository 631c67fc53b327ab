import pytest

from fusion.chats import render
from fusion.errors import RecipeError
from fusion.pieces import encode, read_pieces
from tests.fusion.tiny_tokenizers import TEMPLATE, byte_level

TALK = [("user", "Wie geht's?"), ("assistant", "Gut 👍🏽"), ("user", "שלום"), ("assistant", "<|end|> is a mark\n")]
THINKS = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{% if loop.last or m.role == 'user' %}{{ m.content }}"
    "{% else %}{{ m.content.split('</think>')[-1] }}{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n<think>\n{% endif %}"
)
TRIMS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "[{{ m.role }}] {{ m.content | trim }}{% if m.role == 'assistant' %}{{ eos_token }}{% else %}{{ '\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


def talk(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def tokenizer(template=TEMPLATE, **options):
    return byte_level(["a cat", "the dog"], chat_template=template, **options)


def said(chat):
    raw = chat.text.encode()
    return [raw[start:end].decode() for start, end in chat.supervised]


def test_what_the_assistant_says_is_supervised_with_its_end_of_turn():
    [chat] = render([talk(*TALK)], tokenizer())
    assert said(chat) == ["Gut 👍🏽<|end|>", "<|end|> is a mark\n<|end|>"]
    assert chat.text.endswith("is a mark\n<|end|>\n")


def test_the_text_is_what_the_template_writes():
    model = tokenizer()
    [chat] = render([talk(*TALK)], model)
    assert chat.text == model.apply_chat_template(talk(*TALK), tokenize=False)


def test_chats_keep_their_order_and_equal_ones_their_id():
    chats = render([talk(*TALK), talk(*TALK[:2]), talk(*TALK)], tokenizer())
    assert chats[0] == chats[2]
    assert chats[0].id != chats[1].id
    assert all(len(chat.id) == 32 and int(chat.id, 16) >= 0 for chat in chats)


def test_the_id_tells_what_is_supervised_too():
    model = tokenizer("{% for m in messages %}{{ m.content }}<|end|>{% endfor %}")
    one, other = render([talk(("user", "a"), ("assistant", "b")), talk(("assistant", "a"), ("assistant", "b"))], model)
    assert one.text == other.text
    assert one.id != other.id


def test_an_answer_that_comes_first_begins_with_its_words():
    [chat] = render([talk(("assistant", "Hello"), ("user", "x"), ("assistant", "y"))], tokenizer())
    assert said(chat) == ["Hello<|end|>", "y<|end|>"]


def test_an_answer_begins_where_the_prompt_for_it_stops_being_right():
    [chat] = render([talk(("user", "a"), ("assistant", "<think>b</think>c"))], tokenizer(THINKS))
    assert said(chat) == ["b</think>c<|end|>"]  # the template's prompt writes <think> itself, then a line break


def test_a_bos_that_the_tokenizer_adds_is_left_to_it():
    model = tokenizer(TRIMS, bos=True)
    [chat] = render([talk(("user", "a"), ("assistant", " b "))], model)
    assert chat.text == "[user] a\n[assistant] b</s>"
    assert said(chat) == ["b</s>"]
    ids = encode(model, read_pieces(model), chat.text, bos=True).ids.tolist()
    assert ids == model.apply_chat_template(talk(("user", "a"), ("assistant", " b ")), return_dict=True)["input_ids"]


def test_a_bos_that_only_the_template_writes_stays():
    [chat] = render([talk(("user", "a"), ("assistant", "b"))], tokenizer(TRIMS))
    assert chat.text.startswith("<s>[user]")


def test_a_template_without_an_end_of_turn_gives_all_that_it_writes():
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"
    [chat] = render([talk(("user", "a"), ("assistant", "b"))], tokenizer(plain))
    assert said(chat) == ["assistant: b\n\n"]


def test_a_template_that_rewrites_an_answer_is_an_error_that_names_the_conversation():
    fine = talk(("user", "a"), ("assistant", "b"))
    thinks = talk(("user", "a"), ("assistant", "<think>b</think>c"), ("user", "d"), ("assistant", "e"))
    with pytest.raises(RecipeError, match="message 2 of conversation 2 otherwise once the talk goes on"):
        render([fine, thinks], tokenizer(THINKS))


def test_a_refusal_of_the_template_names_the_conversation():
    with pytest.raises(RecipeError, match="refuses conversation 1: no system; change the roles"):
        render([talk(("system", "a"), ("user", "b"), ("assistant", "c"))], tokenizer(TRIMS))


def test_without_a_template_or_an_answer_or_with_half_a_character_nothing_is_rendered():
    with pytest.raises(RecipeError, match="no chat template"):
        render([talk(*TALK)], tokenizer(None))
    with pytest.raises(RecipeError, match="nobody answers in conversation 2"):
        render([talk(*TALK), talk(("user", "a"))], tokenizer())
    with pytest.raises(RecipeError, match="conversation 1 holds half of a character"):
        render([talk(("user", "a\ud83d"), ("assistant", "b"))], tokenizer())
