"""What an adapter gains on held-out samples of the source that it was trained on.

That gain is knowledge of the source (its vocabulary, the form of its facts), not memory of the
target: the part of dL that is there at any rank and length, the offset b of the law.
"""

from __future__ import annotations

from pml_cli.io import finite_or_none
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.split_model import SplitModel
from pml_cli.training.batches import SamplesByCell
from pml_cli.training.scoring import PackInputs, cell_chunks, score_cells, zero_adapters

NOT_MEASURED: dict[str, float | None] = {"control_base_loss": None, "control_gain": None}


def measure(
    base: SplitModel, bank: AdapterBank, cells: SamplesByCell
) -> list[dict[str, float | None]]:
    """Loss of the base on held-out samples, and what the adapter gains there, in nats per token.

    Args:
        base: the frozen model.
        bank: trained adapters of K cells.
        cells: samples that each of them has not seen.

    Returns:
        control_base_loss and control_gain of each cell; None where it has no such samples.
    """
    results = [dict(NOT_MEASURED) for _ in cells]

    for chunk in cell_chunks(cells):
        adapters = bank.select(chunk)
        # The layers below the adapters are the same with and without them.
        inputs = PackInputs(base, adapters, [cells[k] for k in chunk])

        base_losses = _mean_nll(base, zero_adapters(bank, chunk), inputs)
        adapted_losses = _mean_nll(base, adapters, inputs)
        for k, base_loss, loss in zip(chunk, base_losses, adapted_losses, strict=True):
            # An adapter may overflow on text that it was not trained on.
            gain = finite_or_none(base_loss - loss)
            results[k] = {"control_base_loss": finite_or_none(base_loss), "control_gain": gain}
    return results


def _mean_nll(base: SplitModel, bank: AdapterBank, inputs: PackInputs) -> list[float]:
    """Mean nll of each cell's target tokens, nats."""
    return [float(scores.nll.mean()) for scores in score_cells(base, bank, inputs)]
