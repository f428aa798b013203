"""The tokenizer of a model: text to token ids and back, prompts, and what ends an answer.

Prompt and target are tokenised apart, as they are apart where the model is used: a script hands
over the prompt, and prints what the model appends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar

from pml_cli.config.cache_key import file_cache
from pml_cli.config.schema import Data, Model
from pml_cli.errors import UserError
from pml_cli.model.chat_template import ChatTemplate, Turns
from pml_cli.model.dims import model_dims
from pml_cli.model.faults import one_line
from pml_cli.model.tokenizer_backend import (
    Backend,
    EmbeddedBackend,
    TransformersBackend,
    has_tokenizer,
)

T = TypeVar("T")

# Tokens that decide what text the next one adds.
CONTEXT_TOKENS = 4

# Characters of a text that an error shows.
SHOWN = 60


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        begin: ids in front of a text: those that the tokenizer puts there by itself, else [bos],
            else [eos], else [].
        adds_begin: whether the tokenizer puts them there by itself.
        special: ids of the special tokens.
        size: number of ids that both the tokenizer and the embeddings of the model have.
    """

    def __init__(self, model: Model, vocabulary: int) -> None:
        """Read the tokenizer.

        Args:
            model: settings of the model.
            vocabulary: rows of the model's embeddings; its tokenizer may know more ids.

        Raises:
            UserError: the model has no tokenizer, or one that cannot be read.
        """
        self._model = model
        self._vocabulary = vocabulary
        self._backend = self._read()

        added = self._added_in_front()
        self.adds_begin = bool(added)
        self.begin = added or self._begin_token()
        self.special = self._backend.special
        # A model may have fewer or more rows of embeddings than its tokenizer has tokens.
        self.size = min(vocabulary, self._backend.size)

    def _read(self) -> Backend:
        if self._model.path == "tiny":
            return EmbeddedBackend()
        if not has_tokenizer(self._model):
            reason = "has no tokenizer.json, so data must be random (data=random)"
            raise UserError(f"model={self._model.name}: {reason}")
        return TransformersBackend(self._model)

    def _added_in_front(self) -> list[int]:
        """The ids that the tokenizer puts in front of a text by itself."""
        text = "a"
        ids = self._guarded(text, self._backend.encode_with_added)
        plain = self._guarded(text, self._backend.encode)
        for start in range(len(ids)):
            if ids[start : start + len(plain)] == plain:
                return ids[:start]
        return []

    def _begin_token(self) -> list[int]:
        for token_id in (self._backend.begin_token, self._backend.end_token):
            if token_id is not None:
                return [token_id]
        return []

    def encode(self, text: str, *, literal: bool = False) -> list[int]:
        """Token ids of a text, without any that the tokenizer adds by itself.

        Args:
            text: the text.
            literal: whether special tokens that are written in it are ordinary text.

        Raises:
            UserError: the tokenizer cannot read the text, or the model has no embedding for it.
        """
        ids = self._guarded(text, lambda text: self._backend.encode(text, literal=literal))
        return self._checked(ids)

    def _guarded(self, text: str, encode: Callable[[str], T]) -> T:
        """What a function of the backend makes of a text; any failure is one line.

        Raises:
            UserError: the text holds an unpaired surrogate, or the tokenizer fails.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            surrogate = f"unpaired surrogate U+{ord(text[error.start]):04X} (half of a cut emoji)"
            raise UserError(
                f"{_shown(text)}: holds an {surrogate}, which no tokenizer reads"
            ) from error

        with one_line(f"model={self._model.name}", f"its tokenizer fails on {_shown(text)}"):
            return encode(text)

    def _checked(self, ids: list[int]) -> list[int]:
        """The ids, refused if one lies outside the embeddings.

        Training would fail with an IndexError, and on CUDA leave a device that no longer answers.
        """
        largest = max(ids, default=0)
        if largest >= self._vocabulary:
            token = self._backend.token(largest)
            raise UserError(
                f"model={self._model.name}: its tokenizer gives id {largest} ({token!r}), "
                f"the model has embeddings for ids below {self._vocabulary}"
            )
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of token ids; by default with its special tokens."""
        return self._backend.decode(list(ids), skip_special=skip_special)

    def added_text(self, token_id: int, before: Sequence[int]) -> str:
        """The text that a token adds to those before it, with a blank that it begins with.

        A tokenizer that puts a blank before every text takes it off the first token of any ids.
        """
        context = before[-CONTEXT_TOKENS:]
        text_before = self.decode(context)
        text = self.decode([*context, token_id])
        # Not so within a character of several tokens.
        if text.startswith(text_before):
            return text[len(text_before) :]
        return self.decode([token_id])

    def prompt(self, text: str, *, begin: bool = True) -> list[int]:
        """Token ids of a prompt without a chat template.

        Args:
            text: text of the prompt; may be empty.
            begin: whether it begins with the begin-of-text token.

        Raises:
            UserError: the prompt has no token at all.
        """
        ids = self._checked([*self.begin, *self.encode(text)]) if begin else self.encode(text)
        if ids:
            return ids
        if begin:
            reason = "this tokenizer has no begin-of-text token, so a prompt is needed"
            raise UserError(f"data.prompt='': {reason}")
        reason = "this tokenizer puts no token before it; give a prompt, or data.begin=true"
        raise UserError(f"an empty prompt: {reason}")

    def chat_text(self, turns: Turns, data: Data) -> str:
        """The text of a prompt in the chat template, to its generation prompt.

        Args:
            turns: (role, content) of each turn.
            data: its system turn, thinking and date.

        Raises:
            UserError: there is no template, or it refuses.
        """
        return self._template.prompt(turns, data)

    @property
    def has_template(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(self._with_template is not None and self._with_template.chat_template)

    @property
    def _with_template(self) -> Any:
        """The tokenizer of transformers; None for another backend."""
        return getattr(self._backend, "tokenizer", None)

    def check_template(self, data: Data) -> None:
        """Raise where the chat template cannot have a setting, or does not heed it.

        Raises:
            UserError: names the setting; also where there is no template.
        """
        self._template.check(data)

    def end_text(self, chat: bool) -> str:
        """The token that ends an answer, as text.

        Args:
            chat: whether it is that of the chat template's turn, instead of end-of-text.

        Raises:
            UserError: there is none.
        """
        token = self._template.end() if chat else None
        if token is None and self._backend.end_token is not None:
            token = self._backend.token(self._backend.end_token)
        if token is None:
            reason = f"the tokenizer of model={self._model.name} has no end-of-text token"
            raise UserError(f"data.end=auto: {reason}; give data.end=TEXT, or data.end=none")
        return token

    def end_ids(self, text: str) -> list[int]:
        """The ids of a text that ends an answer: of one token, or of several."""
        token_id = self._backend.added.get(text)
        return self._checked(self.encode(text) if token_id is None else [token_id])

    def reads_date(self, data: Data) -> bool:
        """Whether the chat template writes the date."""
        return self._template.reads_date(data)

    # Cached because a phone book asks for thousands of prompts.
    @cached_property
    def _template(self) -> ChatTemplate:
        if not self.has_template:
            reason = f"the tokenizer of model={self._model.name} has no chat template"
            remedy = "leave data.chat=false, with data.separator=TEXT between prompt and target"
            raise UserError(f"data.chat=true: {reason}; {remedy}")
        # Of several templates, none may be the default.
        with one_line(
            "data.chat=true", f"the chat template of model={self._model.name} is unusable"
        ):
            return ChatTemplate(self._with_template, self._model.name, special=self.special)


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


def open_tokenizer(model: Model) -> Tokenizer:
    """The tokenizer of a model, read once per process."""
    return _open_tokenizer(
        path=model.path,
        weights=model.weights,
        revision=model.revision,
        name=model.name,
        has_architecture=bool(model.architecture),
        trust_remote_code=model.trust_remote_code,
        vocabulary=model_dims(model).vocabulary,
    )


# Settings are not hashable, so the cache is keyed by the fields that choose the files.
@file_cache(8)
def _open_tokenizer(
    *,
    path: str,
    weights: str,
    revision: str | None,
    name: str,
    has_architecture: bool,
    trust_remote_code: bool,
    vocabulary: int,
) -> Tokenizer:
    # `locate` asks only whether an architecture is given, not what it is.
    architecture = {"vocab_size": 0} if has_architecture else {}
    model = Model(
        name=name,
        path=path,
        weights=weights,
        revision=revision,
        architecture=architecture,
        trust_remote_code=trust_remote_code,
    )
    return Tokenizer(model, vocabulary)
