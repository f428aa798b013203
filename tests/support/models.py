"""Small models, adapters on them, and their own logits."""

import torch

from pml_cli.config.schema import LinearAdapter, MlpBlockAdapter, Model
from pml_cli.model.adapter_bank import AdapterBank

T = 21  # three times the sliding window of the small models


TARGETS = {"gpt2": ["c_attn", "c_proj"], "gpt_neox": ["query_key_value", "dense_4h_to_h"]}


def local(folder, layer=1, **settings):
    return Model(name="local", path=str(folder), layer=layer, **({"device": "cpu"} | settings))


def adapter_of(kind, family):
    if kind == "mlp_block":
        return MlpBlockAdapter()
    return LinearAdapter(
        targets=TARGETS.get(family, ["q_proj", "o_proj", "down_proj"]), layers=[1, 2], alpha=8.0
    )


def loud_bank(base, adapter, ranks=(3, 1)):
    """Adapters far from zero, so that a pass without them would be noticed."""
    bank = AdapterBank.initial(
        base.sites(adapter), adapter, ranks=ranks, seeds=range(len(ranks)), dtype=base.adapter_dtype
    )
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for B in bank.B.values():
            B.copy_(torch.randn(B.shape, generator=g, dtype=B.dtype))
    return bank.to(base.device)


def own_logits(base, ids, bank):
    """Logits of the transformers model itself."""
    with torch.no_grad(), bank.attached(base.modules):
        return base.model(input_ids=ids, use_cache=False).logits


def ids_of(base, rows):
    return torch.randint(
        1, base.head.weight_VD.shape[0], (rows, T), generator=torch.Generator().manual_seed(2)
    )
