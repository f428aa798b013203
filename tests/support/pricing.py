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
    """One pack, of a cell for each rank."""
    runs = []
    for rank in ranks:
        run = Run(
            rank=rank,
            seqlen=seqlen,
            model=base,
            data=data or RandomData(),
            adapter=adapter,
            train=Train(**({"steps": 3} | train)),
        )
        runs.append(run)
    return Pack(cells=check(runs))


def trainer(planned):
    cells = [Cell(run=c.run, samples=c.samples) for c in planned.cells]
    return Trainer(
        load_model(planned.cells[0].run.model), cells, checkpointing=planned.checkpointing
    )


def one_step(made):
    layout, scores = made._forward()
    made._update(0, layout, scores)


class Counter(FlopCounterMode):
    """FLOPs as torch counts them.

    torch does not know attention on the CPU, nor that a causal mask halves the work, nor (before
    2.13) that several query heads share a head of keys.
    """

    def __init__(self):
        aten = torch.ops.aten

        def forward(q, k, v, _dropout=0.0, is_causal=False, *_, out_shape=None, **__):
            return sdpa_flop_count(q, _head_each(k, q), _head_each(v, q)) // (1 + is_causal)

        def backward(g, q, k, v, _out, _lse, _dropout, is_causal, *_, out_shape=None, **__):
            shapes = (g, q, _head_each(k, q), _head_each(v, q))
            return sdpa_backward_flop_count(*shapes) // (1 + is_causal)

        mapping = {
            aten._scaled_dot_product_flash_attention_for_cpu: forward,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
        }
        super().__init__(display=False, custom_mapping=mapping)


def _head_each(keys, queries):
    """The shape of keys or values, (batch, heads, tokens, width), with a head for each query's."""
    return (keys[0], queries[1], *keys[2:])


def saved(made):
    """Bytes that one step's autograd graph keeps, beside weights, adapters and the cache."""
    constants = [
        *made.base.model.parameters(),
        *made.base.model.buffers(),
        *made.pack.bank.parameters(),
    ]
    for prefix in (made.pack.inputs.prefix, made.fixed_batch.inputs):
        cached = (prefix.entry, prefix.block, prefix.mlp_out)
        constants += [tensor for tensor in cached if tensor is not None]
    addresses = {tensor.untyped_storage().data_ptr() for tensor in constants}

    # By the address of the storage: views of one storage count once.
    saved_tensors = {}

    def pack_hook(tensor):
        saved_tensors[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor):
        made._forward()
    return sum(
        tensor.untyped_storage().nbytes()
        for address, tensor in saved_tensors.items()
        if address not in addresses
    )


def peak(run):
    """Largest number of bytes that were allocated at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    allocated = np.cumsum([event.nbytes() for event in events])
    return int(allocated.max())
