"""data=rule: is the rule found, or are the samples stored?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pml_cli.config.registry import register
from pml_cli.config.schema import FactsData, Model
from pml_cli.config.setting import setting

if TYPE_CHECKING:
    from pml_cli.data.source import Source


@register("data", "rule")
@dataclass(kw_only=True)
class RuleData(FactsData):
    """f(x, y) = 3x + 5y + 7: pairs to learn, and held-out pairs: is the rule found, or stored?"""

    source: str = "rule"
    maximum: int = setting(99, help="x and y are drawn from 0 to this", minimum=1, maximum=2000)
    test_samples: int = setting(200, help="held-out pairs", minimum=0)

    def open(self, model: Model) -> Source:
        """Open the pairs in an order drawn by the seed."""
        from pml_cli.data import synthetic_facts
        from pml_cli.data.facts import facts_source
        from pml_cli.model.tokenizer import open_tokenizer

        training, test = synthetic_facts.rule(self.seed, self.maximum, self.test_samples)
        tokenizer = open_tokenizer(model)
        # Held-out samples come from the same rule, so a gain on them is the rule, not memory.
        return facts_source(tokenizer, self, training, test_facts=test)
