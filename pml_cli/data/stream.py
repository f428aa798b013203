"""What the sources of one long target share: random tokens and running text, which need no prompt.

On a model whose first position is an attention sink (`model/sink.py`) they get one all the same:
behind begin-of-text alone, their first token cannot be learned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from pml_cli.config.schema import Data, Model, Run
from pml_cli.config.setting import setting

# Easily typed, and two or three tokens. Behind it, rank 8 on SmolLM2 recalls 64 tokens of text in
# 60 steps and 64 random ones in 300; "The text:" or a line feed do no better. A line feed or a full
# stop at its end may be a sink itself (Sun et al. 2024).
SINK_PROMPT = "Text:"


@dataclass(kw_only=True)
class StreamData(Data):
    """Common to the sources whose sample is one sequence of tokens, cut to any length."""

    prompt: str | None = setting(
        None,
        help="text before the target",
        special={
            None: f"'{SINK_PROMPT}' where the model's first position is an attention sink, else ''",
            "''": "only begin-of-text",
        },
        absent="",
    )

    def resolved(self, model: Model) -> Data:
        if self.prompt is not None:
            return self
        prompt = SINK_PROMPT if self.needs_prompt(model) else ""
        return dataclasses.replace(self, prompt=prompt)

    def needs_prompt(self, model: Model) -> bool:
        """Whether the target would otherwise follow a sink, for all that is known of the model."""
        from pml_cli.model.sink import first_position_is_sink
        from pml_cli.model.tokenizer_backend import has_tokenizer

        # A chat template puts tokens of its own before the target. Without a tokenizer there is no
        # prompt, and only random tokens can be learned.
        return not self.chat and has_tokenizer(model) and first_position_is_sink(model)


def sink_models(runs: Sequence[Run], prompt: str | None) -> list[Model]:
    """The models, each once, of which a run has this prompt and needs another.

    Args:
        runs: as they were asked for, not resolved.
        prompt: None for runs that get SINK_PROMPT, "" for those that were given none.
    """
    # Thousands of cells share few models.
    distinct: dict[str, Run] = {}
    for run in runs:
        if isinstance(run.data, StreamData) and run.data.prompt == prompt and not run.data.chat:
            distinct.setdefault(str(run.model), run)

    models = []
    for run in distinct.values():
        assert isinstance(run.data, StreamData)
        if run.data.needs_prompt(run.model):
            models.append(run.model)
    return models


def fetch_unmeasured(runs: Sequence[Run]) -> bool:
    """Download the weights of those models of the hub of which a sink is only assumed.

    Args:
        runs: as they were asked for, not resolved.

    Returns:
        Whether there were any: then what the runs were resolved to may be wrong.

    Raises:
        UserError: the hub refuses or cannot be reached.
    """
    from pml_cli.model.weight_files import fetch_weights, local_weights

    missing = [model for model in sink_models(runs, prompt=None) if not local_weights(model)]
    for model in missing:
        fetch_weights(model)
    return bool(missing)
