"""data=phonebook: generated names and numbers, many short facts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pml_cli.config.registry import register
from pml_cli.config.schema import FactsData, Model
from pml_cli.config.setting import setting

if TYPE_CHECKING:
    from pml_cli.data.source import Source


@register("data", "phonebook")
@dataclass(kw_only=True)
class PhonebookData(FactsData):
    """Generated names and numbers, one sample an entry."""

    source: str = "phonebook"
    digits: int = setting(10, help="digits of a number", minimum=1, maximum=18)

    def open(self, model: Model) -> Source:
        """Open the entries in an order drawn by the seed."""
        from pml_cli.data import synthetic_facts
        from pml_cli.data.facts import facts_source
        from pml_cli.model.tokenizer import open_tokenizer

        entries = synthetic_facts.phonebook(self.seed, self.digits)
        return facts_source(open_tokenizer(model), self, entries)
