"""AdamW and clipping for each cell, against torch's own."""

import math

import pytest
import torch

from pml_cli.config.schema import MlpBlockAdapter
from pml_cli.model.adapter_bank import AdapterBank, Site
from pml_cli.training.optimizers.adamw import AdamW
from pml_cli.training.optimizers.clipping import clip_grad_norm_


def bank_of(ranks):
    sites = [Site(name="a", inputs=5, outputs=7), Site(name="b", inputs=7, outputs=3)]
    bank = AdapterBank.initial(
        sites, MlpBlockAdapter(), ranks=ranks, seeds=range(len(ranks)), dtype=torch.float64
    )
    g = torch.Generator().manual_seed(3)
    for B in bank.B.values():
        B.copy_(torch.randn(B.shape, generator=g, dtype=B.dtype))
    return bank


def test_adamw_and_clipping_are_torchs_for_each_cell():
    lrs, decays, limits = [1e-2, 3e-3, 5e-2], [0.0, 0.1, 0.5], [1.0, math.inf, 0.2]
    bank = bank_of([3, 3, 3])
    ours = AdamW(bank, torch.tensor(decays, dtype=torch.float64))
    copies = [[p[k].clone().requires_grad_() for p in bank.parameters()] for k in range(3)]
    theirs = [
        torch.optim.AdamW(c, lr=lr, weight_decay=w)
        for c, lr, w in zip(copies, lrs, decays, strict=True)
    ]
    g = torch.Generator().manual_seed(4)
    for step in range(20):
        grads = [torch.randn(p.shape, generator=g, dtype=p.dtype) for p in bank.parameters()]
        for k, (optimizer, copy) in enumerate(zip(theirs, copies, strict=True)):
            for p, grad in zip(copy, grads, strict=True):
                p.grad = grad[k].clone()
            norm = torch.nn.utils.clip_grad_norm_(copy, limits[k])
            optimizer.param_groups[0]["lr"] = lrs[k] * (1 - step / 20)
            optimizer.step()
            expected = [p.grad for p in copy]
            alone = [grad[k : k + 1].clone() for grad in grads]
            torch.testing.assert_close(
                clip_grad_norm_(alone, torch.tensor([limits[k]], dtype=torch.float64))[0], norm
            )
            for mine, other in zip(alone, expected, strict=True):
                torch.testing.assert_close(mine[0], other, rtol=1e-12, atol=1e-14)
        clip_grad_norm_(grads, torch.tensor(limits, dtype=torch.float64))
        lr_K = torch.tensor(lrs, dtype=torch.float64) * (1 - step / 20)
        ours.step(bank.parameters(), grads, lr_K=lr_K, loss_K=lr_K)
    for k, copy in enumerate(copies):
        for p, other in zip(bank.parameters(), copy, strict=True):
            torch.testing.assert_close(p[k], other.detach(), rtol=1e-10, atol=1e-12)


def test_a_lost_cell_does_not_touch_the_others_in_clipping():
    grads = [torch.full((2, 3, 3), 5.0), torch.full((2, 3, 3), 5.0)]
    grads[0][0, 0, 0] = torch.nan
    norm = clip_grad_norm_(grads, torch.tensor([1.0, 1.0]))
    assert math.isnan(norm[0])
    assert norm[1].item() == pytest.approx(5 * math.sqrt(18))
    assert torch.stack([g[1] for g in grads]).norm().item() == pytest.approx(1, rel=1e-5)
