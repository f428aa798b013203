"""data=text: running text of a file, or of the documentation inside Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pml_cli.config.registry import register
from pml_cli.config.schema import Model
from pml_cli.config.setting import setting
from pml_cli.data.python_docs import documentation_hash
from pml_cli.data.stream import StreamData
from pml_cli.errors import UserError

if TYPE_CHECKING:
    from pml_cli.data.source import Source


@register("data", "text")
@dataclass(kw_only=True)
class TextData(StreamData):
    """Running text: a UTF-8 file, or documentation of Python that the tiny model has not seen."""

    source: str = "text"
    path: str | None = setting(
        None,
        help="UTF-8 file",
        path="existing file",
        special={None: "Python's documentation"},
    )
    start: str = setting(
        "", help="words of the text at which it begins: 'Chapter 1'", special={"''": "at its start"}
    )

    def id_fields(self) -> dict[str, Any]:
        # Other versions of Python carry another text.
        return {} if self.path else {"text": documentation_hash()}

    def text(self) -> str:
        """The text from `start` on, without blanks in front.

        Raises:
            UserError: the file cannot be read, has no such start, or this Python has no
                documentation.
        """
        from pml_cli.data.running_text import from_phrase

        return from_phrase(self._whole_text(), self.start).lstrip()

    def _whole_text(self) -> str:
        from pml_cli.data.python_docs import held_out_text
        from pml_cli.data.text_file import read_text

        if self.path is not None:
            return read_text(self.path)
        try:
            return held_out_text()
        except ModuleNotFoundError as error:
            raise UserError(
                "data=text: this Python was installed without pydoc_data; give data.path=FILE"
            ) from error

    def open(self, model: Model) -> Source:
        """Open the text from a paragraph drawn by the seed on."""
        from pml_cli.data.prompt import stream_prompt
        from pml_cli.data.running_text import running_text_source
        from pml_cli.model.tokenizer import open_tokenizer

        tokenizer = open_tokenizer(model)
        prompt = stream_prompt(tokenizer, self, self.prompt)
        return running_text_source(tokenizer, self.text(), prompt=prompt, seed=self.seed)
