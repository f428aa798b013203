"""data=hf: a text column of a Hugging Face dataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pml_cli.config.registry import register
from pml_cli.config.schema import Model
from pml_cli.config.setting import setting
from pml_cli.data.stream import StreamData
from pml_cli.errors import UserError, first_line

if TYPE_CHECKING:
    from pml_cli.data.source import Source


@register("data", "hf")
@dataclass(kw_only=True)
class HfData(StreamData):
    """A text column of a Hugging Face dataset (needs `pip install pml-cli[hf]`)."""

    source: str = "hf"
    path: str = setting(
        "",
        help="hub id or local folder of the dataset",
        required=True,
        allowed="given with data=hf",
        path="any",
    )
    name: str | None = setting(None, help="configuration of the dataset")
    split: str = setting("train", help="split of the dataset")
    column: str = setting("text", help="column that holds the text")

    def open(self, model: Model) -> Source:
        """Open the column as one text, its rows joined by blank lines.

        Raises:
            UserError: `datasets` is not installed, or cannot load the dataset, split or column.
        """
        from pml_cli.data.prompt import stream_prompt
        from pml_cli.data.running_text import running_text_source
        from pml_cli.model.tokenizer import open_tokenizer

        tokenizer = open_tokenizer(model)
        prompt = stream_prompt(tokenizer, self, self.prompt)
        return running_text_source(tokenizer, self.text(), prompt=prompt, seed=self.seed)

    def text(self) -> str:
        """The rows of the column, joined by blank lines; empty rows are left out."""
        try:
            import datasets
        except ModuleNotFoundError as error:
            raise UserError(
                "data=hf: needs the datasets library: pip install 'pml-cli[hf]'"
            ) from error

        try:
            table = datasets.load_dataset(self.path, self.name, split=self.split)
        except Exception as error:
            # Errors of many types, of which the first line is the reason.
            raise UserError(f"data.path={self.path}: {first_line(error)}") from error

        if self.column not in table.column_names:
            columns = ", ".join(table.column_names)
            raise UserError(f"data.column={self.column}: this dataset has {columns}")
        # A column may hold other types, or nothing in some rows.
        return "\n\n".join(str(text) for text in table[self.column] if text)
