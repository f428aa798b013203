"""`loss.keep`: a penalty on what an adapter adds to text that it is not to change.

The energy of an adapter is the mean of |scale x A B|^2 over generic inputs x, summed over its
sites. With the second moment C = mean of x' x of a site's inputs in the base model it is

    E = scale^2 tr(B' A' C A B)

so no step reads generic text: C is computed once. The training minimises loss + keep * E; scores
and the logged loss stay those of the task. The gradient is written down, not derived by autograd:

    dE/dA = 2 scale^2 C A B B'      dE/dB = 2 scale^2 A' C A B

Each cell is computed by itself and at its own rank: the same bits packed as alone. Where a site
is wide its C is large: 64 MiB at I = 4096, 784 MiB at I = 14336; linear adapters on all layers of
such a model may not fit a device, as a dry run says.

Shapes: I inputs and O outputs of a site, r rank of a cell, n windows of T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pml_cli.config.schema import Run
from pml_cli.data.generic_text import generic_windows
from pml_cli.data.source import Sample
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.chunk_sizes import PREFIX_ROWS
from pml_cli.model.split_model import SplitModel
from pml_cli.training.scoring import zero_adapters

Moments: TypeAlias = dict[str, Tensor]
"""The second moment C of each site's inputs, (I, I), by the site's name."""

_Key: TypeAlias = tuple[tuple[str, ...], tuple[Sample, ...]]

# Those of the latest pack of each base: the next pack mostly needs the same.
_latest: WeakKeyDictionary[SplitModel, dict[_Key, Moments]] = WeakKeyDictionary()


class EnergyPenalty:
    """The penalties of the cells of a pack; those without `loss.keep` have none."""

    def __init__(self, base: SplitModel, bank: AdapterBank, runs: Sequence[Run]) -> None:
        """Compute the second moments, or take those of the pack before.

        Args:
            base: the frozen model.
            bank: its sites tell where the adapters are; its weights do not matter.
            runs: of the cells.

        Raises:
            UserError: the generic text cannot be read.
        """
        sites = tuple(bank.sites)
        keys = [(sites, generic_windows(run)) for run in runs]
        needed = {key for key, run in zip(keys, runs, strict=True) if run.loss.keep}

        # First forgotten, then computed: at d = 4096 a site takes 64 MiB.
        present = _latest.get(base, {})
        moments = {key: present[key] for key in needed if key in present}
        _latest[base] = moments
        del present
        for key in needed - set(moments):
            moments[key] = second_moments(base, bank, key[1])

        self._weights = [run.loss.keep for run in runs]
        self._moments = [moments.get(key, {}) for key in keys]

    @torch.no_grad()
    def add_gradient(self, bank: AdapterBank, grads: Sequence[Tensor]) -> None:
        """Add the gradient of keep * E of each cell, in place.

        Args:
            bank: the adapters of the cells.
            grads: gradients of its parameters, in the order of `AdapterBank.parameters`.
        """
        sites = list(bank.sites)
        grads_A = dict(zip(sites, grads[: len(sites)], strict=True))
        grads_B = dict(zip(sites, grads[len(sites) :], strict=True))

        for k, weight in enumerate(self._weights):
            if weight == 0:
                continue
            rank = bank.ranks[k]
            factor = 2 * weight * bank.scale[k] ** 2
            for name, C in self._moments[k].items():
                # Contiguous: as it lies when the cell is alone, without the padding of a pack.
                A_Ir = bank.A[name][k, :, :rank].contiguous()
                B_rO = bank.B[name][k, :rank].contiguous()
                CA_Ir = C @ A_Ir
                grads_A[name][k, :, :rank] += factor * (CA_Ir @ (B_rO @ B_rO.T))
                grads_B[name][k, :rank] += factor * ((A_Ir.T @ CA_Ir) @ B_rO)

    def keep(self, cells: Sequence[int]) -> None:
        """Drop all cells but these, by their indices."""
        self._weights = [self._weights[k] for k in cells]
        self._moments = [self._moments[k] for k in cells]


@torch.no_grad()
def second_moments(base: SplitModel, bank: AdapterBank, windows: Sequence[Sample]) -> Moments:
    """Mean of x' x over the inputs of each site in the base model, in the adapters' dtype.

    Position 0 is left out: there many models have an attention sink, whose huge states say nothing
    about text.

    Args:
        base: the frozen model.
        bank: its sites tell where the adapters are; its weights do not matter.
        windows: of one length.
    """
    ids_nT = torch.tensor([[*window.prompt, *window.target] for window in windows])
    n, T = ids_nT.shape
    dtype = base.adapter_dtype
    moments: Moments = {}
    for name, site in bank.sites.items():
        moments[name] = torch.zeros(site.inputs, site.inputs, dtype=dtype, device=base.device)

    def add_inputs(name: str, inputs: Tensor) -> None:
        # Some layers join rows and tokens.
        x_bTI = inputs.reshape(-1, T, inputs.shape[-1])
        x_NI = x_bTI[:, 1:].flatten(0, 1).to(dtype)
        moments[name].addmm_(x_NI.T, x_NI)

    prefix = base.prefix(ids_nT, bank)
    if bank.is_block:
        (name,) = bank.sites
        add_inputs(name, prefix.entry)
    else:
        untrained = zero_adapters(bank, [0])
        batches = torch.arange(n, device=base.device).split(PREFIX_ROWS)
        with _inputs_passed_to(add_inputs, base, bank):
            for rows in batches:
                base.upper(prefix.rows(rows, T), untrained)

    return {name: moment / (n * (T - 1)) for name, moment in moments.items()}


@contextmanager
def _inputs_passed_to(
    receiver: Callable[[str, Tensor], None], base: SplitModel, bank: AdapterBank
) -> Iterator[None]:
    """Call a function with the name and the input of each site that runs, while inside."""

    def before_site(name: str, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        receiver(name, inputs[0])

    with ExitStack() as hooks:
        for name in bank.sites:
            hook = partial(before_site, name)
            handle = base.modules[name].register_forward_pre_hook(hook)
            hooks.callback(handle.remove)
        yield
