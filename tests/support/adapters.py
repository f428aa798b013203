"""Adapter banks for tests, and scores made up by hand."""

import numpy as np
import torch

from pml_cli.data.opened import source_of
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.training.scores import Scores
from pml_cli.training.trainer import Cell, Trainer


def train(base, runs):
    """The cells of some runs, trained as one pack."""
    cells = [Cell(run=run, samples=source_of(run).take(run.seqlen)) for run in runs]
    Trainer(base, cells).train()
    return cells


def random_bank(base, adapter, ranks, *, scale=0.1, seed=5):
    """Adapters whose B is random too; beyond a cell's rank it is zero."""
    bank = AdapterBank.initial(
        base.sites(adapter),
        adapter,
        ranks=ranks,
        seeds=list(range(len(ranks))),
        dtype=base.adapter_dtype,
    )
    generator = torch.Generator().manual_seed(seed)
    for name, B in bank.B.items():
        bank.B[name] = scale * torch.randn(B.shape, generator=generator).to(B.dtype)
        for k, rank in enumerate(ranks):
            bank.B[name][k, rank:] = 0
    return bank


def make_scores(*, nll, margin, argmax, target=None, sample=None):
    """Scores of some tokens; by default all are token 1 of one sample."""
    count = len(nll)
    samples = [0] * count if sample is None else list(sample)
    positions = [samples[:i].count(s) for i, s in enumerate(samples)]
    return Scores(
        sample=np.array(samples, np.int32),
        position=np.array(positions, np.int32),
        token_id=np.array([1] * count if target is None else target, np.int32),
        nll=np.array(nll, float),
        margin=np.array(margin, float),
        argmax_id=np.array(argmax, np.int32),
    )
