"""Muon for each cell, against torch's own."""

import pytest
import torch

from pml_cli.config.schema import LinearAdapter, MlpBlockAdapter
from pml_cli.model.adapter_bank import AdapterBank, Site
from pml_cli.training.optimizers.muon import Muon, orthogonalised


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bank_of(ranks, adapter):
    sites = [Site(name="a", inputs=15, outputs=17), Site(name="b", inputs=17, outputs=13)]
    return AdapterBank.initial(
        sites, adapter, ranks=ranks, seeds=range(len(ranks)), dtype=torch.float64
    )


@pytest.mark.parametrize("adapter", [MlpBlockAdapter(), LinearAdapter(alpha=8)])
def test_muon_is_torchs_for_each_cell(monkeypatch, adapter):
    # torch rounds to bfloat16, to be fast on a GPU.
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.double)
    ranks, lrs, decays = [3, 1, 6], [0.3, 0.1, 0.02], [0.0, 0.1, 0.5]
    bank = bank_of(ranks, adapter)
    ours = Muon(bank, torch.tensor(decays, dtype=torch.float64))
    copies = []
    theirs = []
    for k, rank in enumerate(ranks):
        # Both with the rank first, where torch's factor for tall matrices is 1.
        copy = [A[k, :, :rank].T.clone().requires_grad_() for A in bank.A.values()]
        copy += [B[k, :rank].clone().requires_grad_() for B in bank.B.values()]
        copies.append(copy)
        theirs.append(torch.optim.Muon(copy, lr=lrs[k], weight_decay=decays[k]))

    sites = len(bank.A)
    for step in range(6):
        grads = [random(*p.shape, seed=step) for p in bank.parameters()]
        for k, rank in enumerate(ranks):
            for i, grad in enumerate(grads):
                grad[k, :, rank:] *= i >= sites
                grad[k, rank:] *= i < sites
                own = grad[k, :, :rank].T if i < sites else grad[k, :rank]
                copies[k][i].grad = own.clone()
            # torch's rate is for a scale of 1, and its decay is by the rate itself.
            group = theirs[k].param_groups[0]
            group["lr"] = lrs[k] / bank.scale[k].sqrt().item()
            group["weight_decay"] = decays[k] * bank.scale[k].sqrt().item()
            theirs[k].step()
        lr_K = torch.tensor(lrs, dtype=torch.float64)
        ours.step(bank.parameters(), grads, lr_K=lr_K, loss_K=lr_K)

    for k, rank in enumerate(ranks):
        for i, parameter in enumerate(bank.parameters()):
            own = parameter[k, :, :rank].T if i < sites else parameter[k, :rank]
            torch.testing.assert_close(own, copies[k][i].detach(), rtol=1e-9, atol=1e-12)


def test_padding_stays_zero_and_changes_nothing():
    matrices = random(2, 20, 8, seed=1)
    matrices[0, :, 3:] = 0
    whole = orthogonalised(matrices)
    assert whole[0, :, 3:].abs().max() == 0
    torch.testing.assert_close(whole[:1, :, :3], orthogonalised(matrices[:1, :, :3]))
    torch.testing.assert_close(orthogonalised(matrices.mT), whole.mT)


def test_singular_values_end_near_one():
    values = torch.linalg.svdvals(orthogonalised(random(3, 64, 8, seed=2)))
    assert 0.65 < values.min() < values.max() < 1.25
    assert orthogonalised(torch.zeros(1, 4, 3)).abs().max() == 0
