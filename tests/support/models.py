"""Small models, adapters on them, and their own logits."""

import torch

from pml_cli.config.schema import LinearAdapter, MlpBlockAdapter, Model
from pml_cli.model.adapter_bank import AdapterBank
from support.families import SMALL_MODELS, SmallModel

# Tokens of an input: three times the sliding window of the small models.
T = 21


def local(folder, layer=1, **settings):
    """Settings of a model in a local folder, on the CPU."""
    return Model(name="local", path=str(folder), layer=layer, **({"device": "cpu"} | settings))


def adapter_of(kind, family):
    """Settings of an adapter that fits the modules of a family."""
    if kind == "mlp_block":
        return MlpBlockAdapter()
    targets = list(SMALL_MODELS.get(family, SmallModel()).targets)
    return LinearAdapter(targets=targets, layers=[1, 2], alpha=8.0)


def initial_bank(model, adapter, ranks):
    """Untrained adapters with the seeds 0, 1, 2 ..."""
    sites = model.sites(adapter)
    seeds = range(len(ranks))
    return AdapterBank.initial(sites, adapter, ranks=ranks, seeds=seeds, dtype=model.adapter_dtype)


def random_bank(model, adapter, ranks=(3, 1)):
    """Adapters far from zero, so that a pass without them is noticed."""
    bank = initial_bank(model, adapter, ranks)
    generator = torch.Generator().manual_seed(1)
    for name, B in bank.B.items():
        B.copy_(torch.randn(B.shape, generator=generator, dtype=B.dtype))
        for k, rank in enumerate(ranks):
            # Rows beyond a cell's own rank are padding.
            bank.B[name][k, rank:] = 0
    return bank.to(model.device)


def own_logits(model, ids, bank):
    """Logits of the transformers model itself."""
    with torch.no_grad(), bank.attached(model.modules):
        return model.model(input_ids=ids, use_cache=False).logits


def random_ids(model, rows, tokens=T):
    """Token ids, (rows, tokens)."""
    vocabulary = model.head.weight_VD.shape[0]
    generator = torch.Generator().manual_seed(2)
    return torch.randint(1, vocabulary, (rows, tokens), generator=generator)


def logits_of_cell(model, ids, bank, k):
    """Logits of the whole model with the adapter of one cell."""
    with torch.no_grad():
        return model.logits(model.full(ids, bank.select([k])).last_hidden_state)


def transformers_model(folder, dtype=torch.float32):
    """The model as anyone loads it."""
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def save_random(family, fields, folder):
    """Write a model with random weights, as `save_pretrained` does.

    Args:
        family: its `model_type`.
        fields: of its config.json.
        folder: where to.
    """
    import transformers

    config = transformers.AutoConfig.for_model(family, **fields)
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config)

    # Initial weights are so small that layers hardly matter, and biases of 0, norms of 1 and
    # factors of 1 would hide that they are left out.
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 0.1 if parameter.dim() > 1 else 0.2
            parameter.copy_(parameter + scale * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.fill_(0.7)

    model.save_pretrained(folder)
    return folder
