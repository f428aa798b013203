"""data=random: nothing to guess, every token must be stored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pml_cli.config.registry import register
from pml_cli.config.schema import Model
from pml_cli.data.stream import StreamData
from pml_cli.errors import UserError

if TYPE_CHECKING:
    from pml_cli.data.source import Sample, Source

# Random streams of the target and of the held-out sequence.
TARGET_STREAM = 1
HELD_OUT_STREAM = 5


@register("data", "random")
@dataclass(kw_only=True)
class RandomData(StreamData):
    """Uniform random tokens of the vocabulary, without special tokens."""

    source: str = "random"

    def open(self, model: Model) -> Source:
        """Open the source; a model without a tokenizer has token 0 for begin-of-text.

        Raises:
            UserError: a prompt or chat template is set, and the model has no tokenizer.
        """
        import numpy as np

        from pml_cli.data.prompt import stream_prompt
        from pml_cli.data.random_tokens import drawable, ordinary_ids
        from pml_cli.data.source import Sample, Source
        from pml_cli.model.dims import model_dims
        from pml_cli.model.tokenizer import open_tokenizer
        from pml_cli.model.tokenizer_backend import has_tokenizer

        if has_tokenizer(model):
            tokenizer = open_tokenizer(model)
            ids = ordinary_ids(tokenizer)
            prompt_ids = stream_prompt(tokenizer, self, self.prompt)
        elif self.prompt or self.chat:
            settings = f"data.prompt={self.prompt!r}, data.chat={self.chat}"
            raise UserError(f"{settings}: model={model.name} has no tokenizer")
        else:
            ids = drawable(np.arange(1, model_dims(model).vocabulary))
            # Token 0 stands for begin-of-text, and is never a target.
            prompt_ids = (0,)

        def draw(seqlen: int, stream: int) -> list[Sample]:
            random = np.random.default_rng([self.seed, stream])
            target = ids[random.integers(len(ids), size=seqlen)]
            return [Sample(prompt=prompt_ids, target=tuple(target.tolist()))]

        # Streams apart, so that target and held-out sequence share nothing.
        return Source(
            cut=lambda seqlen: draw(seqlen, TARGET_STREAM),
            max_tokens=None,
            entropy=math.log(len(ids)),
            held_out=lambda seqlen: draw(seqlen, HELD_OUT_STREAM),
        )
