import pytest

from sdft.model.tiny_model import byte_tokenizer
from sdft.rollout.stopping import Ending


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("stop_strings", "text", "kept"),
    [
        (("é",), "aébé", "aé"),  # two tokens for one character
        (("ab", "b"), "xxab", "xxab"),
        (("bc", "b"), "abcd", "ab"),
        (("\n\n",), "a\n b\n\nc", "a\n b\n\n"),
        (("<|turn|>",), "a<|turn|>b", "a<|turn|>"),  # one token for eight characters
        (("zz",), "abc", "abc"),
    ],
)
def test_a_completion_is_cut_behind_its_first_stop_string(tokenizer, stop_strings, text, kept):
    ending = Ending(frozenset(), stop_strings, tokenizer.decode)
    tokens, ended = ending.cut(ids(tokenizer, text))
    assert tokenizer.decode(tokens) == kept
    assert ended == any(stop in text for stop in stop_strings)


def test_an_end_token_ends_a_completion_before_a_later_stop_string(tokenizer):
    tokens = ids(tokenizer, "ab<|end|>c")
    ending = Ending(frozenset([tokens[2]]), ("c",), tokenizer.decode)
    assert ending.cut(tokens) == (tokens[:3], True)


def test_ending_token_by_token_equals_looking_for_the_text_in_the_whole(tokenizer):
    tokens = ids(tokenizer, "the cat — naïve — sat on the cat's mat")
    for stop in ["cat's", "ïv", "— s", "the cat'", "t"]:
        ending = Ending(frozenset(), (stop,), tokenizer.decode)
        length = next(n for n in range(len(tokens)) if stop in tokenizer.decode(tokens[:n]))
        assert ending.cut(tokens) == (tokens[:length], True)
        assert [ending.ends(tokens[:n]) for n in range(1, length + 1)] == [False] * (length - 1) + [
            True
        ]
