"""One training step, with its FLOPs and bytes counted."""

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from pml_cli.config.schema import LinearAdapter, MlpBlockAdapter, Model, Run, Train
from pml_cli.data.sources.random import RandomData
from pml_cli.launch.pack import Pack
from pml_cli.launch.packing import check
from pml_cli.model.loading import load_model
from pml_cli.training.trainer import Cell, Trainer
from support.families import SMALL_MODELS

BLOCK = MlpBlockAdapter()


def measured_adapter(family):
    """Linear adapters where FLOPs and bytes of a family are measured."""
    return LinearAdapter(targets=list(SMALL_MODELS[family].measured_targets))


def model(family="qwen3", dtype="float32", **fields):
    architecture = {"model_type": family, **SMALL_MODELS[family].wide_config, **fields}
    return Model(
        name=family, weights="random", architecture=architecture, dtype=dtype, device="cpu"
    )


def pack(base, adapter=BLOCK, seqlen=40, ranks=(4, 2), data=None, **train):
    train = Train(**({"steps": 3} | train))
    return Pack(
        check(
            [
                Run(
                    rank=r,
                    seqlen=seqlen,
                    seed=0,
                    model=base,
                    data=data or RandomData(),
                    adapter=adapter,
                    train=train,
                )
                for r in ranks
            ]
        )
    )


def trainer(planned):
    cells = [Cell(run=c.run, samples=c.samples) for c in planned.cells]
    return Trainer(
        load_model(planned.cells[0].run.model), cells, checkpointing=planned.checkpointing
    )


def one_step(made):
    layout, scores = made._forward()
    made._update(0, layout, scores)


class Counter(FlopCounterMode):
    """FLOPs as torch counts them; it does not know of attention on the CPU, nor that a causal mask halves the work."""

    def __init__(self):
        aten = torch.ops.aten

        def forward(q, k, v, *_, out_shape=None, **__):
            return sdpa_flop_count(q, k, v) // 2

        def backward(g, q, k, v, *_, out_shape=None, **__):
            return sdpa_backward_flop_count(g, q, k, v) // 2

        names = {"_scaled_dot_product_flash_attention_for_cpu": forward}
        names["_scaled_dot_product_flash_attention_for_cpu_backward"] = backward
        super().__init__(
            display=False,
            custom_mapping={getattr(aten, name): count for name, count in names.items()},
        )


def saved(made):
    """Bytes that one step's autograd graph keeps, beside weights, adapters and the cache."""
    parts = [
        *made.base.model.parameters(),
        *made.base.model.buffers(),
        *made.pack.bank.parameters(),
    ]
    parts += [
        x
        for p in (made.pack.inputs.prefix, made.fixed_batch[1])
        for x in (p.entry, p.block, p.mlp_out)
        if x is not None
    ]
    known, kept = {x.untyped_storage().data_ptr() for x in parts}, {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        made._forward()
    return sum(x.untyped_storage().nbytes() for place, x in kept.items() if place not in known)


def peak(run):
    """Largest number of bytes that were allocated at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        run()
    events = [e for e in told.profiler.kineto_results.events() if e.name() == "[memory]"]
    return int(np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]).max())
