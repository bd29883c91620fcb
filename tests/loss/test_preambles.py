import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sdft.loss.preambles import WATCHED_PREAMBLES, Preambles
from sdft.model.tiny_model import byte_tokenizer

PHRASES = ["Based on the", "Based on the text", "Après", "Text:"]


def coarse_tokenizer():
    """Byte-level pieces that do not respect the ends of phrases, words or characters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("B", "a"), ("t", "h"), ("th", "e"), ("the", ","), ("Ġ", "o"), ("Ã", "¨")]
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(params=[byte_tokenizer, coarse_tokenizer], ids=["bytes", "pieces"])
def tokenizer(request):
    return request.param()


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("Based on the text, no.", "Based on the text"),  # the longest phrase holds
        ("based ON the, well", "based ON the"),
        ("\n Based on the", "\n Based on the"),
        ("Based on the texture", "Based on the"),
        ("Based on theory", ""),
        ("It is Based on the text", ""),
        ("Based on", ""),
        ("Après tout", "Après"),
        ("Text:yes", "Text:"),
        ("", ""),
    ],
)
def test_the_mask_ends_with_the_token_that_ends_the_phrase(tokenizer, text, phrase):
    ids = tokenizer(text)["input_ids"]
    (number,) = Preambles(PHRASES, tokenizer).num_tokens([ids])
    assert len(tokenizer.decode(ids[:number])) >= len(phrase)
    assert not number or len(tokenizer.decode(ids[: number - 1])) <= len(phrase)
    assert tokenizer.decode(ids[:number]).startswith(phrase)
    assert bool(number) == bool(phrase)
    assert number == 0 or "è" not in phrase or "�" not in tokenizer.decode(ids[:number])


def test_half_a_character_behind_the_phrase_is_left_to_the_loss():
    tokenizer = byte_tokenizer()
    ids = tokenizer("Text:é")["input_ids"]
    assert Preambles(PHRASES, tokenizer).num_tokens([ids, ids[:-1]]) == [5, 5]


def test_half_of_a_phrases_last_character_is_no_phrase():
    tokenizer = byte_tokenizer()
    ids = tokenizer("café")["input_ids"]
    assert Preambles(["café"], tokenizer).num_tokens([ids, ids[:-1]]) == [5, 0]


def test_the_rate_is_the_share_of_completions_that_begin_with_a_phrase(tokenizer):
    completions = [
        tokenizer(text)["input_ids"]
        for text in ("Based on the text it is.", "Paris.", "According to the article, no", "the")
    ]
    assert Preambles(WATCHED_PREAMBLES, tokenizer).rate(completions) == 0.5


def test_enough_tokens_are_sampled_to_see_every_watched_phrase(tokenizer):
    preambles = Preambles(WATCHED_PREAMBLES, tokenizer)
    for phrase in WATCHED_PREAMBLES:
        assert preambles.rate([tokenizer(" " + phrase)["input_ids"][: preambles.max_tokens]]) == 1


def test_without_phrases_nothing_is_masked(tokenizer):
    assert Preambles([], tokenizer).num_tokens([[5, 6], []]) == [0, 0]


def test_a_blank_phrase_is_refused(tokenizer):
    with pytest.raises(ValueError, match="preamble '  ' is empty"):
        Preambles(["  "], tokenizer)
