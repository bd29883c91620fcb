import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdft.model.tiny_model import SPECIAL_TOKENS, byte_tokenizer
from sdft.tasks.encoding import Encoder

TOKENIZER = byte_tokenizer()
SPECIAL_IDS = set(TOKENIZER.all_special_ids)
PIECES = (*SPECIAL_TOKENS, "<|", "|>", "end", " ", "\n", "a", "\ue000", "é", "{{ x }}")
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=8).map("".join)


def chat(*texts):
    roles = ("system", "user", "assistant", "user")
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


def num_special(ids):
    return sum(token in SPECIAL_IDS for token in ids)


@settings(deadline=None, max_examples=60, database=None)
@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_special_tokens_come_from_the_template_alone_and_no_text_is_lost(texts):
    ids = Encoder(TOKENIZER).encode_chat(chat(*texts))
    rendered = TOKENIZER.apply_chat_template(
        chat(*texts), add_generation_prompt=True, tokenize=False
    )
    assert TOKENIZER.decode(ids) == rendered
    calm = Encoder(TOKENIZER).encode_chat(chat(*["calm"] * len(texts)))
    assert num_special(ids) == num_special(calm)
    for text in texts:
        assert num_special(Encoder(TOKENIZER).encode(text)) == 0
        assert TOKENIZER.decode(Encoder(TOKENIZER).encode(text)) == text


@pytest.mark.parametrize("texts", [["Hi"], ["Be brief.", "What is 1 < 2 | 3?"], ["\ue000", " é\n"]])
def test_chats_without_markup_are_encoded_as_the_tokenizer_does(texts):
    expected = TOKENIZER.apply_chat_template(
        chat(*texts), add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert Encoder(TOKENIZER).encode_chat(chat(*texts)) == expected
    assert Encoder(TOKENIZER).encode(texts[0]) == TOKENIZER(texts[0])["input_ids"]


def test_the_longer_of_two_names_is_found_first():
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>of"]})
    ids = Encoder(tokenizer).encode("a<|end|>of b<|end|>")
    assert tokenizer.decode(ids) == "a<|end|>of b<|end|>"
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_a_tokenizer_without_special_tokens_encodes_as_ever():
    tokenizer = byte_tokenizer()
    plain = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer.from_str(
        tokenizer.backend_tokenizer.to_str().replace('"special":true', '"special":false')
    ))  # fmt: skip
    assert Encoder(plain).encode("a<|end|>") == plain("a<|end|>")["input_ids"]
