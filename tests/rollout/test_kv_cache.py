import os

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from sdft.model.modes import GROUPED_HEADS, grouped_heads
from sdft.rollout.kv_cache import ROOM, GrowingLayer, cache_keyword, joined


def columns(number, rows=3):
    return torch.randn(rows, 2, number, 4), torch.randn(rows, 2, number, 4)


def test_a_growing_layer_holds_what_the_librarys_own_layer_holds():
    torch.manual_seed(0)
    ours, theirs = GrowingLayer(), DynamicLayer()

    def feed(number, rows=3):
        states = columns(number, rows)
        for found, expected in zip(ours.update(*states), theirs.update(*states), strict=True):
            assert torch.equal(found, expected)
        assert ours.get_seq_length() == theirs.get_seq_length()

    for number in (5, 1, 3, ROOM, 1, 2 * ROOM):
        feed(number)
    for layer in (ours, theirs):
        layer.crop(-7)
    feed(2)
    for layer in (ours, theirs):
        layer.batch_select_indices(torch.tensor([2, 0]))
    feed(1, rows=2)
    feed(1, rows=2)
    kept = torch.arange(ours.get_seq_length()) % 2 == 0
    for layer in (ours, theirs):
        layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]
    feed(4, rows=2)


@pytest.mark.parametrize("keyword", ["cache", "past_key_values"])
def test_a_cache_is_given_by_the_name_that_the_model_has_for_it(keyword):
    names = {"cache": lambda cache=None: cache, "past_key_values": lambda past_key_values=None: 0}
    model = torch.nn.Module()
    model.forward = names[keyword]
    assert cache_keyword(model) == keyword


def test_new_columns_are_written_behind_the_old_ones():
    layer = GrowingLayer()
    layer.update(*columns(5))
    place = layer.keys.data_ptr()
    for _ in range(ROOM):
        layer.update(*columns(1))
    assert layer.keys.data_ptr() == place
    layer.update(*columns(1))
    assert layer.keys.data_ptr() != place


def test_joined_caches_hold_the_rows_of_all_aligned_on_the_right():
    caches = []
    for number, rows in ((2, 1), (5, 2)):
        cache = DynamicCache()
        cache.layers = [GrowingLayer(), GrowingLayer()]
        for index in range(2):
            cache.update(*columns(number, rows), layer_idx=index)
        caches.append(cache)
    short, long = (cache.layers[1].keys.clone() for cache in caches)
    found = joined(caches).layers[1].keys
    assert found.shape == (3, 2, 5, 4)
    assert torch.equal(found[:1, :, 3:], short)
    assert not found[:1, :, :3].any()
    assert torch.equal(found[1:], long)


def test_query_heads_share_keys_on_a_processor_for_as_long_as_a_block_lasts(monkeypatch):
    monkeypatch.delenv(GROUPED_HEADS, raising=False)
    with grouped_heads(torch.device("cpu")):
        assert os.environ[GROUPED_HEADS] == "1"
    assert GROUPED_HEADS not in os.environ
    with pytest.raises(RuntimeError, match="inside"), grouped_heads(torch.device("cpu")):
        raise RuntimeError("inside")
    assert GROUPED_HEADS not in os.environ
    with grouped_heads(torch.device("cuda")):
        assert GROUPED_HEADS not in os.environ
    monkeypatch.setenv(GROUPED_HEADS, "0")
    with grouped_heads(torch.device("cpu")):
        assert os.environ[GROUPED_HEADS] == "0"
    assert os.environ[GROUPED_HEADS] == "0"
