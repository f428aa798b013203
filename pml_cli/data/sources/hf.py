"""data=hf: a text column of a Hugging Face data set."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pml_cli.config.registry import register
from pml_cli.config.schema import Data, Model
from pml_cli.config.setting import setting
from pml_cli.data.stream import StreamData
from pml_cli.errors import UserError, did_you_mean, first_line
from pml_cli.format import counted

if TYPE_CHECKING:
    from pml_cli.data.source import Source

# Files of a folder that `save_to_disk` of datasets has written.
SAVED_FILES = ("dataset_dict.json", "state.json")

# What datasets calls a column of text.
TEXT_TYPES = ("string", "large_string", "string_view")

# To wait for the hub.
HUB_SECONDS = 10

# Hexadecimal digits of a commit.
COMMIT_DIGITS = 40


@register("data", "hf")
@dataclass(kw_only=True)
class HfData(StreamData):
    """A text column of a Hugging Face data set (needs `pip install pml-cli[hf]`)."""

    source: str = "hf"
    path: str = setting(
        "",
        help="hub id or local folder of the data set",
        required=True,
        allowed="given with data=hf",
        path="any",
    )
    revision: str | None = setting(
        None,
        help="revision of a data set on the hub; its commit is written into the config",
        special={None: "the newest"},
    )
    name: str | None = setting(None, help="configuration of the data set")
    split: str = setting("train", help="split of the data set")
    column: str = setting("text", help="column that holds the text")

    def resolved(self, model: Model) -> Data:
        """With its prompt, and with the commit of a data set on the hub."""
        prompted = super().resolved(model)
        assert isinstance(prompted, HfData)
        if Path(self.path).exists():
            if self.revision is not None:
                reason = "only for a data set on the hub; a folder counts by its content"
                raise UserError(f"data.revision={self.revision}: {reason}")
            return prompted
        return dataclasses.replace(prompted, revision=_commit(self.path, self.revision))

    def open(self, model: Model) -> Source:
        """Open the column as one text, its rows joined by blank lines.

        Raises:
            UserError: `datasets` is not installed, cannot load the data set or split, or the column
                holds no text.
        """
        from pml_cli.data.prompt import stream_prompt
        from pml_cli.data.running_text import running_text_source
        from pml_cli.model.tokenizer import open_tokenizer

        tokenizer = open_tokenizer(model)
        prompt = stream_prompt(tokenizer, self, self.prompt)
        return running_text_source(tokenizer, self.text(), prompt=prompt, seed=self.seed)

    def text(self) -> str:
        """The rows of the column, joined by blank lines; rows without text are left out."""
        table = self._table()
        text_columns = [
            name
            for name, feature in table.features.items()
            if getattr(feature, "dtype", None) in TEXT_TYPES
        ]
        if self.column not in table.column_names:
            raise UserError(f"data.column={self.column}: {did_you_mean(self.column, text_columns)}")
        # Written out, a list or a number is the text of Python, and none of the data set.
        if self.column not in text_columns:
            names = ", ".join(text_columns) or "none"
            raise UserError(f"data.column={self.column}: holds no text; columns of text: {names}")

        texts = [text for text in table[self.column] if text and not text.isspace()]
        if not texts:
            reason = f"column {self.column} of split {self.split} has no text"
            raise UserError(
                f"data.path={self.path}: {reason} in any of its {counted(len(table), 'row')}"
            )
        return "\n\n".join(texts).lstrip()

    def _table(self) -> Any:
        """The split as a `datasets.Dataset`."""
        try:
            import datasets
        except ModuleNotFoundError as error:
            raise UserError(
                "data=hf: needs the datasets library: pip install 'pml-cli[hf]'"
            ) from error

        if Path(self.path).is_file():
            reason = "a file; data=hf takes a folder or a hub id, data=text and data=jsonl files"
            raise UserError(f"data.path={self.path}: {reason}")
        if any((Path(self.path) / name).is_file() for name in SAVED_FILES):
            return self._saved_table()
        try:
            return datasets.load_dataset(
                self.path, self.name, split=self.split, revision=self.revision
            )
        except Exception as error:
            # Errors of many types, of which the first line is the reason.
            raise UserError(f"data.path={self.path}: {first_line(error)}") from error

    def _saved_table(self) -> Any:
        """The split of a folder that `save_to_disk` has written: of one data set, or of several."""
        import datasets

        try:
            saved = datasets.load_from_disk(self.path)
        except Exception as error:
            raise UserError(f"data.path={self.path}: {first_line(error)}") from error
        if not isinstance(saved, datasets.DatasetDict):
            return saved
        if self.split not in saved:
            raise UserError(f"data.split={self.split}: {did_you_mean(self.split, saved)}")
        return saved[self.split]


@lru_cache(maxsize=64)
def _commit(repository: str, revision: str | None) -> str | None:
    """The commit that a revision of a data set on the hub stands for; as it is where unknown."""
    if revision is not None and len(revision) == COMMIT_DIGITS:
        return revision
    try:
        from huggingface_hub import HfApi

        info = HfApi().dataset_info(repository, revision=revision, timeout=HUB_SECONDS)
        return info.sha or revision
    # Without the hub, what was downloaded before is used: its cache knows the commit.
    except Exception:
        return _cached_commit(repository, revision or "main") or revision


def _cached_commit(repository: str, revision: str) -> str | None:
    """The commit of a revision when it was downloaded last; None where it never was."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"datasets--{repository.replace('/', '--')}"
    try:
        return (folder / "refs" / revision).read_text("utf-8").strip()
    except OSError:
        return None
