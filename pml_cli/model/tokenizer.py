"""The tokenizer of a model, read from tokenizer.json.

transformers is imported for chat templates only.
"""

from __future__ import annotations

import json
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from pml_cli.config.schema import Model
from pml_cli.errors import UserError, first_line
from pml_cli.model.dims import model_dims
from pml_cli.model.files import local_folder, locate


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        begin: ids in front of a prompt: [bos], else [eos], else [].
        special: ids of the special tokens.
        size: number of ids that both the tokenizer and the embeddings of the model have.
    """

    def __init__(self, model: Model, vocabulary: int) -> None:
        """Read the tokenizer.

        Args:
            model: settings of the model.
            vocabulary: rows of the model's embeddings; its tokenizer may know more ids.

        Raises:
            UserError: the model has no tokenizer.json.
        """
        from tokenizers import Tokenizer as Backend

        path = locate(model, "tokenizer.json")
        if path is None:
            reason = "has no tokenizer.json, so data must be random (data=random)"
            raise UserError(f"model={model.name}: {reason}")

        self._backend = Backend.from_file(str(path))
        # A saved tokenizer may have both switched on; transformers resets them too.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._model = model
        self._vocabulary = vocabulary

        self.begin = self._begin_tokens()
        self.special = {
            token_id
            for token_id, token in self._backend.get_added_tokens_decoder().items()
            if token.special
        }
        # A model may have fewer or more rows of embeddings than its tokenizer has tokens.
        self.size = min(vocabulary, self._backend.get_vocab_size(with_added_tokens=True))

    def _begin_tokens(self) -> list[int]:
        """[id] of the begin-of-text token, else of the end-of-text token, else []."""
        path = locate(self._model, "tokenizer_config.json")
        if path is None:
            return []

        config = json.loads(path.read_text("utf-8"))
        return self._special_id(config.get("bos_token")) or self._special_id(
            config.get("eos_token")
        )

    def _special_id(self, token: Any) -> list[int]:
        """[id] of a token as tokenizer_config.json writes it (a string or a dict), else []."""
        content = token.get("content") if isinstance(token, dict) else token
        token_id = self._backend.token_to_id(content) if content else None
        return [] if token_id is None else [token_id]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens.

        Raises:
            UserError: the model has no embedding for one of them.
        """
        encoding = self._backend.encode(text, add_special_tokens=False)
        return self._checked(list(encoding.ids))

    def _checked(self, ids: list[int]) -> list[int]:
        """The same ids, refused if one lies outside the embeddings.

        Training would fail with an IndexError, and on CUDA leave a device that no longer answers.
        """
        largest = max(ids, default=0)
        if largest >= self._vocabulary:
            token = self._backend.id_to_token(largest)
            raise UserError(
                f"model={self._model.name}: its tokenizer gives id {largest} ({token!r}), "
                f"the model has embeddings for ids below {self._vocabulary}"
            )
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, special tokens included."""
        return str(self._backend.decode(ids, skip_special_tokens=False))

    def prompt(self, text: str, chat: bool) -> list[int]:
        """Token ids in front of the target.

        Args:
            text: text of the prompt; may be empty.
            chat: wrap the text in the chat template instead of prepending a begin-of-text token.

        Raises:
            UserError: the prompt has no token at all, or the chat template cannot be used.
        """
        ids = self._chat_prompt(text) if chat else [*self.begin, *self.encode(text)]
        if not ids:
            reason = "this tokenizer has no begin-of-text token, so a prompt is needed"
            raise UserError(f"data.prompt='': {reason}")
        return self._checked(ids)

    def _chat_prompt(self, text: str) -> list[int]:
        from jinja2 import TemplateError

        tokenizer = self._chat_tokenizer
        messages = [{"role": "system", "content": ""}, {"role": "user", "content": text}]
        try:
            rendered = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
        # Gemma's template, for one, allows no system prompt.
        except TemplateError as error:
            reason = f"the chat template of model={self._model.name} refuses ({error})"
            raise UserError(f"data.chat=true: {reason}") from error
        return list(tokenizer.encode(rendered, add_special_tokens=False))

    # Cached because a phone book asks for thousands of prompts.
    @cached_property
    def _chat_tokenizer(self) -> Any:
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoTokenizer

        path = local_folder(self._model) or self._model.path
        name = f"the tokenizer of model={self._model.name}"
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, revision=self._model.revision)
        except (OSError, ValueError, StrictDataclassError) as error:
            reason = f"{name} cannot be read ({first_line(error)})"
            raise UserError(f"data.chat=true: {reason}") from error

        if not tokenizer.chat_template:
            raise UserError(f"data.chat=true: {name} has no chat template")
        return tokenizer


def has_tokenizer(model: Model) -> bool:
    """Whether a model comes with a tokenizer."""
    only_architecture = model.weights == "random" and bool(model.architecture)
    if only_architecture and not Path(model.path).is_dir():
        return False
    return locate(model, "tokenizer.json") is not None


def open_tokenizer(model: Model) -> Tokenizer:
    """The tokenizer of a model, read once per process."""
    return _open_tokenizer(
        path=model.path,
        weights=model.weights,
        revision=model.revision,
        name=model.name,
        has_architecture=bool(model.architecture),
        vocabulary=model_dims(model).vocabulary,
    )


# Settings are not hashable, so the cache is keyed by the fields that choose the files.
@lru_cache(maxsize=8)
def _open_tokenizer(
    *,
    path: str,
    weights: str,
    revision: str | None,
    name: str,
    has_architecture: bool,
    vocabulary: int,
) -> Tokenizer:
    # `locate` asks only whether an architecture is given, not what it is.
    architecture = {"vocab_size": 0} if has_architecture else {}
    model = Model(
        name=name, path=path, weights=weights, revision=revision, architecture=architecture
    )
    return Tokenizer(model, vocabulary)
