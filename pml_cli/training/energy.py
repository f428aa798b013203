"""`loss.keep_by=energy`: a penalty on the square of what an adapter adds on generic inputs.

The energy of an adapter is, summed over its sites, the mean of |scale x A B|^2 over generic inputs
x, as a share of the mean of |h|^2, where h is what it is added to: of a linear module its own
output, of an MLP block the residual stream after the layer. With the second moment of a site's
inputs in the base model, C = mean of x' x / mean of |h|^2, it is

    E = scale^2 tr(B' A' C A B)

so no step reads generic text: C is computed once. The gradient is written down, not derived by
autograd:

    dE/dA = 2 scale^2 C A B B'      dE/dB = 2 scale^2 A' C A B

Each cell is computed by itself and at its own rank: the same bits packed as alone.

Shapes: I inputs and O outputs of a site, r rank of a cell, n windows of T tokens, K cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pml_cli.data.source import Sample
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.chunk_sizes import PREFIX_ROWS
from pml_cli.model.layer_calls import first_tensor
from pml_cli.model.split_model import SplitModel
from pml_cli.training.scoring import zero_adapters

Windows: TypeAlias = tuple[Sample, ...]
"""Generic text of one cell; none: the cell has no penalty."""

Moments: TypeAlias = dict[str, Tensor]
"""The relative second moment C of each site's inputs, (I, I), by the site's name."""

_Key: TypeAlias = tuple[tuple[str, ...], Windows]

# Those of the latest pack of each base: the next pack mostly needs the same.
_latest: WeakKeyDictionary[SplitModel, dict[_Key, Moments]] = WeakKeyDictionary()


class EnergyPenalty:
    """The energies of the cells of a pack, and their gradients."""

    def __init__(self, base: SplitModel, bank: AdapterBank, windows: Sequence[Windows]) -> None:
        """Compute the second moments, or take those of the pack before.

        Args:
            base: the frozen model.
            bank: its sites tell where the adapters are; its weights do not matter.
            windows: generic text of each cell.
        """
        sites = tuple(bank.sites)
        keys = [(sites, of_cell) for of_cell in windows]
        needed = {key for key in keys if key[1]}

        # First forgotten, then computed: at d = 4096 a site takes 64 MiB.
        present = _latest.get(base, {})
        moments = {key: present[key] for key in needed if key in present}
        _latest[base] = moments
        del present
        for key in needed - set(moments):
            moments[key] = second_moments(base, bank, key[1])

        self._moments = [moments.get(key, {}) for key in keys]

    @torch.no_grad()
    def add_gradient(self, bank: AdapterBank, grads: Sequence[Tensor], weight_K: Tensor) -> Tensor:
        """Add the gradient of weight * E of each cell, in place.

        Args:
            bank: the adapters of the cells.
            grads: gradients of its parameters, in the order of `AdapterBank.parameters`.
            weight_K: weight of each cell's energy, (K,).

        Returns:
            E of each cell, (K,); 0 without generic text.
        """
        sites = list(bank.sites)
        grads_A = dict(zip(sites, grads[: len(sites)], strict=True))
        grads_B = dict(zip(sites, grads[len(sites) :], strict=True))
        energy_K = torch.zeros_like(weight_K)

        for k, moments in enumerate(self._moments):
            rank = bank.ranks[k]
            square = bank.scale[k] ** 2
            factor = 2 * weight_K[k] * square
            for name, C in moments.items():
                # Contiguous: as it lies when the cell is alone, without the padding of a pack.
                A_Ir = bank.A[name][k, :, :rank].contiguous()
                B_rO = bank.B[name][k, :rank].contiguous()
                CA_Ir = C @ A_Ir
                ACA_rr = A_Ir.T @ CA_Ir
                BB_rr = B_rO @ B_rO.T
                grads_A[name][k, :, :rank] += factor * (CA_Ir @ BB_rr)
                grads_B[name][k, :rank] += factor * (ACA_rr @ B_rO)
                energy_K[k] += square * (ACA_rr * BB_rr).sum()
        return energy_K

    def keep(self, cells: Sequence[int]) -> None:
        """Drop all cells but these, by their indices."""
        self._moments = [self._moments[k] for k in cells]


class _SiteSums:
    """Sums over the tokens that a site has seen, from which its relative moment follows.

    Position 0 is left out: there many models have an attention sink, whose huge states say nothing
    about text.
    """

    def __init__(self, inputs: int, tokens: int, like: Tensor) -> None:
        """
        Args:
            inputs: size I of the site's input.
            tokens: of a window, T.
            like: dtype and device of the sums.
        """
        self.tokens = tokens
        self.moment = like.new_zeros(inputs, inputs)
        self.power = like.new_zeros(())

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Add what goes into the site and what its adapter is added to, some windows each."""
        x_NI = self._without_first(inputs)
        h_NO = self._without_first(outputs)
        self.moment.addmm_(x_NI.T, x_NI)
        self.power += h_NO.square().sum()

    def _without_first(self, states: Tensor) -> Tensor:
        # Some layers join rows and tokens.
        states_bTF = states.reshape(-1, self.tokens, states.shape[-1])
        return states_bTF[:, 1:].flatten(0, 1).to(self.moment.dtype)

    def relative_moment(self) -> Tensor:
        """C: both are sums over the same tokens."""
        return self.moment / self.power


@torch.no_grad()
def second_moments(base: SplitModel, bank: AdapterBank, windows: Sequence[Sample]) -> Moments:
    """C of each site in the base model, in the adapters' dtype.

    Args:
        base: the frozen model.
        bank: its sites tell where the adapters are; its weights do not matter.
        windows: of one length.
    """
    ids_nT = torch.tensor([[*window.prompt, *window.target] for window in windows])
    n, T = ids_nT.shape
    like = torch.empty(0, dtype=base.adapter_dtype, device=base.device)
    sums: dict[str, _SiteSums] = {}
    for name, site in bank.sites.items():
        sums[name] = _SiteSums(site.inputs, T, like)

    prefix = base.prefix(ids_nT, bank)
    if bank.is_block:
        (name,) = bank.sites
        sums[name].add(prefix.entry, base.block_output(prefix, bank))
    else:
        untrained = zero_adapters(bank, [0])
        batches = torch.arange(n, device=base.device).split(PREFIX_ROWS)
        with _seen_by(sums, base):
            for rows in batches:
                base.upper(prefix.rows(rows, T), untrained)

    return {name: of_site.relative_moment() for name, of_site in sums.items()}


@contextmanager
def _seen_by(sums: dict[str, _SiteSums], base: SplitModel) -> Iterator[None]:
    """Add input and output of each site that runs to its sums, while inside."""

    def after_site(add: Callable[[Tensor, Tensor], None], *called: Any) -> None:
        _module, inputs, output = called
        add(inputs[0], first_tensor(output))

    with ExitStack() as hooks:
        for name, of_site in sums.items():
            site: nn.Module = base.modules[name]
            handle = site.register_forward_hook(partial(after_site, of_site.add))
            hooks.callback(handle.remove)
        yield
