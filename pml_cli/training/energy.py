"""`loss.keep_by=energy`: a penalty on the square of what an adapter adds on generic inputs.

The energy of an adapter is, summed over its sites, the mean of |scale x A B|^2 over generic inputs
x, as a share of the mean of |h|^2, where h is what it is added to: of a linear module its own
output, of an MLP block the residual stream after the layer. With the second moment of a site's
inputs in the base model, C = mean of x' x / mean of |h|^2, it is

    E = scale^2 tr(B' A' C A B)

so no step reads generic text: C is computed once. The gradient is written down, not derived by
autograd:

    dE/dA = 2 scale^2 C A B B'      dE/dB = 2 scale^2 A' C A B

Each cell is computed by itself and at its own rank: the same bits packed as alone. Where a site is
wide, C is kept by its main directions and the mean of the rest: at I = 14336 all of it takes 784
MiB.

Shapes: I inputs and O outputs of a site, r rank of a cell, n windows of T tokens, K cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.chunk_sizes import PREFIX_ROWS
from pml_cli.model.layer_calls import first_tensor
from pml_cli.model.split_model import Prefix, SplitModel
from pml_cli.training.keep_text import KeepText
from pml_cli.training.limits import MAIN_DIRECTIONS, MOMENT_NUMBERS, WIDEST_WHOLE
from pml_cli.training.scoring import zero_adapters

# Further directions that make the search for the main ones exact.
OVERSAMPLING = 16


class Factored(NamedTuple):
    """A second moment whose main directions are kept, and the mean of what lies beside them.

    C = U diag(s) U' + rest * identity, with k directions U: (k + 1) I numbers instead of I^2.
    """

    directions_Ik: Tensor
    """U, orthonormal."""

    excess_k: Tensor
    """s: how far C there is above the rest."""

    rest: Tensor
    """Mean square of the inputs in all other directions, ()."""

    def __matmul__(self, A_Ir: Tensor) -> Tensor:
        along_kr = self.directions_Ik.T @ A_Ir
        return self.directions_Ik @ (self.excess_k[:, None] * along_kr) + self.rest * A_Ir


Moments: TypeAlias = dict[str, "Tensor | Factored"]
"""The relative second moment C of each site's inputs, (I, I), by the site's name."""

# Those of the latest text, by its rows: packs mostly have the same.
_latest: WeakKeyDictionary[KeepText, dict[tuple[int, ...], Moments]] = WeakKeyDictionary()


class EnergyPenalty:
    """The energies of the cells of a pack, and their gradients."""

    def __init__(self, text: KeepText, bank: AdapterBank, rows: Sequence[Sequence[int]]) -> None:
        """Compute the second moments, or take those of the pack before.

        Args:
            text: generic text.
            bank: its sites tell where the adapters are; its weights do not matter.
            rows: windows of each cell; none: the cell has no energy.
        """
        keys = [tuple(of_cell) for of_cell in rows]
        needed = {key for key in keys if key}

        # Old moments are freed before new ones are computed: at d = 4096 a site takes 64 MiB.
        present = _latest.get(text, {})
        moments = {key: present[key] for key in needed if key in present}
        _latest[text] = moments
        del present
        for key in needed - set(moments):
            moments[key] = second_moments(text, bank, key)

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

    def retain_cells(self, cells: Sequence[int]) -> None:
        """Keep only the cells at these indices."""
        self._moments = [self._moments[k] for k in cells]


class SiteSums:
    """Sums over the tokens that a site has seen, from which its relative moment follows.

    Position 0 is left out: there many models have an attention sink, whose huge states say nothing
    about text.
    """

    def __init__(self, inputs: int, like: Tensor) -> None:
        """
        Args:
            inputs: size I of the site's input.
            like: dtype and device of the sums.
        """
        self.moment = like.new_zeros(inputs, inputs)
        self.power = like.new_zeros(())

    def add(self, inputs: Tensor, outputs: Tensor, tokens: int) -> None:
        """Add what goes into the site and what its adapter is added to, for windows of T tokens."""
        x_NI = self._without_first(inputs, tokens)
        h_NO = self._without_first(outputs, tokens)
        self.moment.addmm_(x_NI.T, x_NI)
        self.power += h_NO.square().sum()

    def _without_first(self, states: Tensor, tokens: int) -> Tensor:
        # Some layers join rows and tokens.
        states_bTF = states.reshape(-1, tokens, states.shape[-1])
        return states_bTF[:, 1:].flatten(0, 1).to(self.moment.dtype)

    def relative_moment(self) -> Tensor:
        """C: both are sums over the same tokens."""
        return self.moment / self.power


@torch.no_grad()
def second_moments(text: KeepText, bank: AdapterBank, rows: Sequence[int]) -> Moments:
    """C of each site in the base model, in the adapters' dtype.

    Args:
        text: generic text.
        bank: its sites tell where the adapters are; its weights do not matter.
        rows: some of its windows.
    """
    moments: Moments = {}
    widths = {name: site.inputs for name, site in bank.sites.items()}
    for names in groups(widths):
        # Their sums are local to this call: those of two groups never exist at once.
        moments |= _moments_of(names, text, bank, rows)
    # In the order of the sites.
    return {name: moments[name] for name in bank.sites}


def groups(widths: Mapping[str, int]) -> list[list[str]]:
    """Sites in groups, whose whole second moments exist at once: narrow ones all together.

    Args:
        widths: inputs of each site, by its name.
    """
    narrow = [name for name, inputs in widths.items() if inputs <= WIDEST_WHOLE]
    found = [narrow] if narrow else []
    numbers = MOMENT_NUMBERS
    for name, inputs in widths.items():
        if inputs <= WIDEST_WHOLE:
            continue
        numbers += inputs**2
        if numbers > MOMENT_NUMBERS:
            found.append([])
            numbers = inputs**2
        found[-1].append(name)
    return found


def _moments_of(
    names: Sequence[str], text: KeepText, bank: AdapterBank, rows: Sequence[int]
) -> Moments:
    """C of some sites, factored where they are wide."""
    like = torch.empty(0, dtype=text.base.adapter_dtype, device=text.base.device)
    sums = {name: SiteSums(bank.sites[name].inputs, like) for name in names}

    # Windows of one length together: the padding of a shorter one is no text.
    by_length: dict[int, list[int]] = {}
    for row in rows:
        by_length.setdefault(text.tokens_of(row), []).append(row)
    for tokens, alike in by_length.items():
        for part in torch.tensor(alike, device=like.device).split(PREFIX_ROWS):
            _add_windows(sums, text.base, bank, text.prefix.rows(part, tokens))

    return {name: of_width(sums.pop(name).relative_moment()) for name in names}


def of_width(C: Tensor) -> Tensor | Factored:
    """A second moment, (I, I), as it is kept: factored where it is wide."""
    return C if len(C) <= WIDEST_WHOLE else factored(C, MAIN_DIRECTIONS)


def factored(C: Tensor, directions: int) -> Factored:
    """The main directions of a second moment (I, I), and the mean of the rest."""
    devices = [C.device] if C.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        # It begins with random directions: the same in every process.
        torch.manual_seed(0)
        U_Iq, squares_q, _ = torch.svd_lowrank(C, q=directions + OVERSAMPLING, niter=4)

    main_k = squares_q[:directions]
    rest = (C.trace() - main_k.sum()) / (len(C) - directions)
    # A copy, so that the other directions are freed.
    U_Ik = U_Iq[:, :directions].clone()
    return Factored(directions_Ik=U_Ik, excess_k=main_k - rest, rest=rest)


def _add_windows(
    sums: dict[str, SiteSums], base: SplitModel, bank: AdapterBank, prefix: Prefix
) -> None:
    """Add what every site sees of some windows to its sums."""
    tokens = prefix.entry.shape[1]
    if bank.is_block:
        (of_site,) = sums.values()
        of_site.add(prefix.entry, base.block_output(prefix, bank), tokens)
        return

    with ExitStack() as hooks:
        for name, of_site in sums.items():
            see = partial(add_call, of_site, tokens)
            hooks.callback(base.modules[name].register_forward_hook(see).remove)
        base.upper(prefix, zero_adapters(bank, [0]))


def add_call(of_site: SiteSums, tokens: int, *called: Any) -> None:
    """A forward hook: the site's module was called."""
    _module, inputs, output = called
    of_site.add(inputs[0], first_tensor(output), tokens)
