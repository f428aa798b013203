"""Where a model's files lie, and what its config and tokenizer say: without importing torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from pml_cli.config.schema import TINY, Model
from pml_cli.errors import UserError, first_line


@dataclass(frozen=True)
class Facts:
    """What planning needs to know of a model."""

    layers: int
    hidden: int
    vocabulary: int
    context: int  # longest input, tokens

    def adapter_layer(self, asked: int | None) -> int:
        """The 0-based decoder layer that carries the adapter: as asked, else at two thirds of the depth."""
        return self.layers * 2 // 3 if asked is None else asked


def locate(model: Model, name: str) -> Path | None:
    """A file of the model: embedded, in its local folder, or from the hub (downloaded once). None where it has none."""
    if model.path == "tiny":
        return _existing(TINY / name)
    if Path(model.path).is_dir():
        return _existing(Path(model.path) / name)
    if model.weights == "random" and model.architecture:
        return None  # nothing is downloaded for random weights
    if model.path.startswith(("/", ".", "~")):
        raise UserError(f"model.path={model.path}: no such folder")
    return _from_hub(model.path, name, model.revision)


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


@lru_cache(maxsize=64)
def _from_hub(repository: str, name: str, revision: str | None) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # its retries are not the user's concern
    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except RemoteEntryNotFoundError:
        return None
    except LocalEntryNotFoundError as error:
        words = "no such local folder, not in the cache, and the hub cannot be reached"
        raise UserError(f"model.path={repository}: {words}") from error
    except Exception as error:  # gated, misspelt, no rights: many types, one meaning for the user
        first = first_line(error)
        raise UserError(
            f"model.path={repository}: no such local folder, and the hub says: {first}"
        ) from error


def config_fields(model: Model) -> dict[str, Any]:
    """The fields of the model's config.json (of its text part, where it has several)."""
    if model.weights == "random" and model.architecture:
        fields = model.architecture
    else:
        path = locate(model, "config.json")
        if path is None:
            raise UserError(f"model.path={model.path}: has no config.json")
        try:
            fields = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise UserError(
                f"model.path={model.path}: its config.json is not JSON ({error})"
            ) from error
    return dict(fields.get("text_config", fields))


def facts(model: Model) -> Facts:
    """Depth, width, vocabulary and context of a model, from its config alone."""
    fields = config_fields(model)

    def first(*names: str) -> int:
        for name in names:
            if fields.get(name) is not None:
                return int(fields[name])
        raise UserError(f"model.path={model.path}: its config has no {names[0]}")

    found = Facts(
        layers=first("num_hidden_layers", "n_layer"),
        hidden=first("hidden_size", "n_embd"),
        vocabulary=first("vocab_size"),
        context=first("max_position_embeddings", "n_positions"),
    )
    if model.layer is not None and model.layer >= found.layers:
        raise UserError(
            f"model.layer={model.layer}: {model.name} has layers 0 to {found.layers - 1}"
        )
    return found


class Tokenizer:
    """Text to token ids and back. Reads tokenizer.json directly; transformers is loaded for chat templates alone."""

    def __init__(self, model: Model, vocabulary: int) -> None:
        """`vocabulary`: of the model, whose tokenizer may know more tokens than it has embeddings for."""
        from tokenizers import Tokenizer as Backend

        path = locate(model, "tokenizer.json")
        if path is None:
            raise UserError(
                f"model={model.name}: has no tokenizer.json, so data must be random (data=random)"
            )
        self._backend = Backend.from_file(str(path))
        self._backend.no_truncation()  # whoever saved it may have left both on; transformers too resets them
        self._backend.no_padding()
        self._model, self._vocabulary = model, vocabulary
        settings = locate(model, "tokenizer_config.json")
        names = json.loads(settings.read_text("utf-8")) if settings else {}
        self.begin = self._special(names.get("bos_token")) or self._special(names.get("eos_token"))
        self.special = {
            i for i, token in self._backend.get_added_tokens_decoder().items() if token.special
        }
        self.size = min(vocabulary, self._backend.get_vocab_size(with_added_tokens=True))

    def _special(self, token: Any) -> list[int]:
        name = token.get("content") if isinstance(token, dict) else token
        found = self._backend.token_to_id(name) if name else None
        return [] if found is None else [found]

    def encode(self, text: str) -> list[int]:
        """The ids of a text.

        Raises:
            UserError: the model has no embedding for one of them.
        """
        return self._embedded(list(self._backend.encode(text, add_special_tokens=False).ids))

    def _embedded(self, ids: list[int]) -> list[int]:
        largest = max(ids, default=0)
        if (
            largest >= self._vocabulary
        ):  # else an IndexError in training, on CUDA a device that no longer answers
            token = f"its tokenizer gives id {largest} ({self._backend.id_to_token(largest)!r})"
            raise UserError(
                f"model={self._model.name}: {token}, the model has embeddings for ids below {self._vocabulary}"
            )
        return ids

    def decode(self, ids: list[int]) -> str:
        return str(self._backend.decode(ids, skip_special_tokens=False))

    def prompt(self, text: str, chat: bool) -> list[int]:
        """The ids before the target: begin-of-text (or end-of-text) and the text, or the chat template around it."""
        ids = self._embedded(self._chat(text) if chat else [*self.begin, *self.encode(text)])
        if not ids:
            raise UserError(
                "data.prompt='': this tokenizer has no begin-of-text token, so a prompt is needed"
            )
        return ids

    def _chat(self, text: str) -> list[int]:
        from jinja2 import TemplateError

        tokenizer = self._chat_tokenizer
        messages = [{"role": "system", "content": ""}, {"role": "user", "content": text}]
        try:
            rendered = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
        except TemplateError as error:  # such as Gemma's, which allows no system prompt
            raise UserError(
                f"data.chat=true: the chat template of model={self._model.name} refuses ({error})"
            ) from error
        return list(tokenizer.encode(rendered, add_special_tokens=False))

    @cached_property
    def _chat_tokenizer(self) -> Any:
        """Read once: a phone book asks for thousands of prompts."""
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoTokenizer

        path = TINY if self._model.path == "tiny" else self._model.path
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, revision=self._model.revision)
        except (OSError, ValueError, StrictDataclassError) as error:
            first = first_line(error)
            raise UserError(
                f"data.chat=true: the tokenizer of model={self._model.name} cannot be read ({first})"
            ) from error
        if not tokenizer.chat_template:
            raise UserError(
                f"data.chat=true: the tokenizer of model={self._model.name} has no chat template"
            )
        return tokenizer


def open_tokenizer(model: Model) -> Tokenizer:
    """The model's tokenizer, read once per process."""
    known = (model.path, model.weights, model.revision, model.name)
    return _open_tokenizer(
        *known, architecture=bool(model.architecture), vocabulary=facts(model).vocabulary
    )


@lru_cache(maxsize=8)
def _open_tokenizer(
    path: str, weights: str, revision: str | None, name: str, *, architecture: bool, vocabulary: int
) -> Tokenizer:
    stand_in = {"vocab_size": 0} if architecture else {}
    return Tokenizer(
        Model(name=name, path=path, weights=weights, revision=revision, architecture=stand_in),
        vocabulary,
    )
