"""Tokenizers as they are read: the embedded model's alone, all others by transformers.

transformers resolves what no single file says: the special tokens of a class, those of
special_tokens_map.json, and vocab.json with merges.txt or tokenizer.model in place of
tokenizer.json. It takes seconds to import, which the embedded model does without.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from pml_cli.config.schema import TINY, Model
from pml_cli.model.faults import one_line
from pml_cli.model.files import local_folder, locate

# One of these files makes a tokenizer.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)


def has_tokenizer(model: Model) -> bool:
    """Whether a model comes with a tokenizer.

    Raises:
        UserError: its folder does not exist, or the hub refuses or cannot be reached.
    """
    only_architecture = model.weights == "random" and bool(model.architecture)
    if only_architecture and not Path(model.path).is_dir():
        return False
    return any(locate(model, name) is not None for name in TOKENIZER_FILES)


class Backend(ABC):
    """What `Tokenizer` needs of a tokenizer.

    Attributes:
        size: number of tokens.
        added: ids of the tokens that are found in a text before it is split, by their text.
        special: ids of the special ones of them.
        begin_token: begin-of-text, if there is one.
        end_token: end-of-text, if there is one.
    """

    size: int
    added: dict[str, int]
    special: set[int]
    begin_token: int | None
    end_token: int | None

    @abstractmethod
    def encode(self, text: str, *, literal: bool = False) -> list[int]:
        """Ids without any that the tokenizer adds; `literal`: special tokens are plain text."""

    @abstractmethod
    def encode_with_added(self, text: str) -> list[int]:
        """Ids with those that the tokenizer puts around a text by itself."""

    @abstractmethod
    def decode(self, ids: list[int], *, skip_special: bool) -> str:
        """The text of ids."""

    @abstractmethod
    def token(self, token_id: int) -> str | None:
        """The token of an id, as the vocabulary writes it."""


class EmbeddedBackend(Backend):
    """The embedded model's, without transformers; every prompt gets its begin-of-text token."""

    def __init__(self) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
        config = json.loads((TINY / "tokenizer_config.json").read_text("utf-8"))
        added = self._tokenizer.get_added_tokens_decoder()

        self.size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.added = {token.content: token_id for token_id, token in added.items()}
        self.special = {token_id for token_id, token in added.items() if token.special}
        self.begin_token = self._tokenizer.token_to_id(config["bos_token"])
        self.end_token = self._tokenizer.token_to_id(config["eos_token"])

    def encode(self, text: str, *, literal: bool = False) -> list[int]:
        self._tokenizer.encode_special_tokens = literal
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_with_added(self, text: str) -> list[int]:
        # The model has seen every text begin so.
        assert self.begin_token is not None
        return [self.begin_token, *self.encode(text)]

    def decode(self, ids: list[int], *, skip_special: bool) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special))

    def token(self, token_id: int) -> str | None:
        token: str | None = self._tokenizer.id_to_token(token_id)
        return token


class TransformersBackend(Backend):
    """A tokenizer as transformers reads it.

    Attributes:
        tokenizer: of transformers.
    """

    def __init__(self, model: Model) -> None:
        """
        Raises:
            UserError: transformers cannot read it.
        """
        # Tokenizers of a repository's own code or of another library may lack anything.
        with one_line(f"model.path={model.path}", "transformers cannot read its tokenizer"):
            self.tokenizer = read_tokenizer(model)
            added = self.tokenizer.added_tokens_decoder

            self.size = len(self.tokenizer)
            self.added = {token.content: token_id for token_id, token in added.items()}
            self.special = {token_id for token_id, token in added.items() if token.special}
            self.special |= set(self.tokenizer.all_special_ids)
            self.begin_token = self.tokenizer.bos_token_id
            self.end_token = self.tokenizer.eos_token_id

    def encode(self, text: str, *, literal: bool = False) -> list[int]:
        ids = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=literal)
        return list(ids)

    def encode_with_added(self, text: str) -> list[int]:
        return list(self.tokenizer(text).input_ids)

    def decode(self, ids: list[int], *, skip_special: bool) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=skip_special))

    def token(self, token_id: int) -> str | None:
        token: str | None = self.tokenizer.convert_ids_to_tokens(token_id)
        return token


def read_tokenizer(model: Model) -> Any:
    """The tokenizer of transformers for a model, as a script gets it.

    What it raises for files that it cannot use is not enumerable.
    """
    import transformers

    # It warns of texts that are longer than the context, which pml checks by itself.
    transformers.utils.logging.set_verbosity_error()
    return transformers.AutoTokenizer.from_pretrained(
        local_folder(model) or model.path,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
    )
