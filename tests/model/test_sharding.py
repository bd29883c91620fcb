"""A head whose parameters are held in shards, on two processes."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from sdft.loss.distillation import distillation_loss
from sdft.loss.divergence_registry import make_divergence
from sdft.model.head import VocabularyHead
from sdft.model.sharding import gathered_parameter
from tests.processes import on_ranks

RANKS, ROWS, WIDTH, VOCABULARY = 2, 6, 4, 9


def whole_layer():
    torch.manual_seed(0)
    return nn.Linear(WIDTH, VOCABULARY, dtype=torch.float64)


def loss_of(hidden, layer, weight):
    return distillation_loss(
        hidden,
        VocabularyHead(layer),
        hidden.detach().flip(0),
        VocabularyHead(layer),
        tokens=torch.zeros(len(hidden), dtype=torch.long),
        weights=torch.full((len(hidden),), weight),
        divergence=make_divergence("forward_kl"),
    ).loss


def gradients_of_a_sharded_head(rank, directory):
    mesh = init_device_mesh("cpu", (RANKS,))
    layer = whole_layer()
    for name, parameter in list(layer.named_parameters()):
        setattr(layer, name, nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(0)])))
    torch.manual_seed(1 + rank)
    hidden = torch.randn(ROWS, WIDTH, dtype=torch.float64, requires_grad=True)
    # Averaging over ranks divides by their number, so the weights carry it.
    loss_of(hidden, layer, RANKS / (ROWS * RANKS)).backward()
    found = [each.grad.full_tensor() for each in (layer.weight, layer.bias)]
    torch.save((hidden.detach(), hidden.grad, found), f"{directory}/rank-{rank}.pt")


@pytest.mark.slow
def test_sharded_head_gets_the_gradient_of_the_whole_batch(tmp_path):
    on_ranks(gradients_of_a_sharded_head, tmp_path, RANKS)
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(RANKS)]
    layer = whole_layer()
    losses = []
    for hidden, grad_hidden, _ in ranks:
        hidden.requires_grad_()
        losses.append(loss_of(hidden, layer, 1 / (ROWS * RANKS)))
        losses[-1].backward(retain_graph=True)
        torch.testing.assert_close(grad_hidden / RANKS, hidden.grad)
    for _, _, (grad_weight, grad_bias) in ranks:
        torch.testing.assert_close(grad_weight, layer.weight.grad)
        torch.testing.assert_close(grad_bias, layer.bias.grad)


def test_a_whole_parameter_is_returned_as_it_is():
    parameter = nn.Parameter(torch.ones(2))
    assert gathered_parameter(parameter) is parameter
