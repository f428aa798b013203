"""data=mixed: running text in which a share of the tokens is replaced by random ones."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pml_cli.config.registry import register
from pml_cli.config.schema import Data, Model
from pml_cli.config.setting import setting
from pml_cli.data.sources.text import TextData

if TYPE_CHECKING:
    from pml_cli.data.source import Sample, Source

# Random streams of the target and of the held-out sequence: positions, then tokens.
TARGET_STREAMS = (2, 3)
HELD_OUT_STREAMS = (6, 7)


@register("data", "mixed")
@dataclass(kw_only=True)
class MixedData(TextData):
    """Running text in which a share of the tokens is replaced by uniform random ones."""

    source: str = "mixed"
    random_share: float = setting(
        0.4, help="share of the tokens that is random", minimum=0, maximum=1
    )

    @property
    def label(self) -> str:
        return f"mixed:{self.random_share:g}"

    def open(self, model: Model) -> Source:
        """Open the text and replace tokens; a larger share replaces more of the same positions."""
        import numpy as np

        from pml_cli.data.random_tokens import ordinary_ids
        from pml_cli.data.source import Sample, Source
        from pml_cli.model.tokenizer import open_tokenizer

        text = super().open(model)
        ids = ordinary_ids(open_tokenizer(model))

        def mix(samples: list[Sample], streams: tuple[int, int]) -> list[Sample]:
            position_stream, token_stream = streams
            positions = np.random.default_rng([self.seed, position_stream])
            tokens = np.random.default_rng([self.seed, token_stream])

            mixed = []
            for sample in samples:
                length = len(sample.target)
                # One uniform number a position: a larger share replaces a superset of positions.
                is_random = positions.random(length) < self.random_share
                random_ids = ids[tokens.integers(len(ids), size=length)]
                target = np.where(is_random, random_ids, sample.target)
                mixed.append(Sample(prompt=sample.prompt, target=tuple(target.tolist())))
            return mixed

        return Source(
            cut=lambda seqlen: mix(text.cut(seqlen), TARGET_STREAMS),
            max_tokens=text.max_tokens,
            # The entropy of the text is unknown.
            entropy=math.log(len(ids)) if self.random_share == 1 else None,
            held_out=lambda seqlen: mix(text.held_out(seqlen), HELD_OUT_STREAMS),
        )

    def overlapping(self) -> list[Data]:
        """The text that lies under the random tokens."""
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(TextData)}
        return [TextData(**shared | {"source": TextData.source})]
