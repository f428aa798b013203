"""Small tokenizers of the kinds that models come with, and chat templates in the way of families.

Each is a folder with config.json, so that it is a model for everything that reads no weights.
"""

import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from pml_cli.config.schema import Model

BEGIN, END, TURN, TURN_END, PAD = "<|begin|>", "<|end|>", "<|turn|>", "<|turn_end|>", "<|pad|>"
SPECIAL = [PAD, BEGIN, END, TURN, TURN_END]

CORPUS = [
    "When was the Kestrel pump built? In 1987, by Ada Alder of Bremen, for 1.2 litres a second.",
    "The capital of France is Paris. The old man said: it's 10,400 km, and that's that!",
    "Which word is it? A word with a blank before and after, and another one.\n\nAnd a new line.",
]


def byte_level() -> Tokenizer:
    """As GPT-2, Qwen, SmolLM2: bytes, blanks belong to the word that follows."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, pre_tokenizers.ByteLevel.alphabet())


def prefixed() -> Tokenizer:
    """As Llama 2: a blank is put before every text, and taken off when it is decoded."""
    tokenizer = Tokenizer(models.BPE(unk_token=PAD, byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    # Words alone are merged, as by sentencepiece.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁*[^▁]+|▁+"), "isolated")
    return _trained(tokenizer, _characters())


def unprefixed() -> Tokenizer:
    """As Gemma: blanks are visible characters, none is added."""
    tokenizer = Tokenizer(models.BPE(unk_token=PAD, byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁*[^▁]+|▁+"), "isolated")
    return _trained(tokenizer, _characters())


def lower_case() -> Tokenizer:
    """One that forgets: no text with capitals comes back as it was."""
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def with_begin(tokenizer: Tokenizer) -> Tokenizer:
    """As Llama: begin-of-text before every text."""
    return _with_template(tokenizer, f"{BEGIN} $A")


def with_begin_and_end(tokenizer: Tokenizer) -> Tokenizer:
    """Also end-of-text after it."""
    return _with_template(tokenizer, f"{BEGIN} $A {END}")


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte level": byte_level,
    "byte level, begin": lambda: with_begin(byte_level()),
    "byte level, begin and end": lambda: with_begin_and_end(byte_level()),
    "prefixed, begin": lambda: with_begin(prefixed()),
    "unprefixed, begin": lambda: with_begin(unprefixed()),
}


def _characters() -> list[str]:
    return sorted({character for text in CORPUS for character in text} | {"▁"})


def _trained(tokenizer: Tokenizer, alphabet: list[str]) -> Tokenizer:
    # As sentencepiece's, a vocabulary with byte fallback has a token for every byte.
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    is_fallback = getattr(tokenizer.model, "byte_fallback", False)
    special = [*SPECIAL, *(fallback if is_fallback else [])]

    trainer = BpeTrainer(
        vocab_size=len(special) + len(alphabet) + 150,
        initial_alphabet=alphabet,
        special_tokens=special,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if not is_fallback:
        return tokenizer

    # The bytes are no special tokens: read again without them as such.
    fields = json.loads(tokenizer.to_str())
    fields["added_tokens"] = [
        token for token in fields["added_tokens"] if token["content"] in SPECIAL
    ]
    return Tokenizer.from_str(json.dumps(fields))


def _with_template(tokenizer: Tokenizer, single: str) -> Tokenizer:
    ids = [(token, tokenizer.token_to_id(token)) for token in (BEGIN, END)]
    tokenizer.post_processor = TemplateProcessing(
        single=single, pair=f"{single} $B", special_tokens=ids
    )
    return tokenizer


def tokenizer_folder(
    folder: Path, tokenizer: Tokenizer, template: str | None = None, **settings: object
) -> Model:
    """A model folder: a tokenizer, its settings, and a config that planning can read.

    Args:
        folder: where it is written.
        tokenizer: its tokenizer.
        template: its chat template.
        settings: of tokenizer_config.json; null leaves one out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))

    fields = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "chat_template": template,
    }
    fields = {name: value for name, value in (fields | settings).items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))

    config = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "max_position_embeddings": 512,
        "vocab_size": tokenizer.get_vocab_size(),
    }
    (folder / "config.json").write_text(json.dumps(config))
    return Model(name="small", path=str(folder), device="cpu")


def add_special(tokenizer: Tokenizer, *tokens: str) -> Tokenizer:
    """The tokenizer with more special tokens."""
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in tokens])
    return tokenizer


# In the way of families, with the special tokens above. Written for these tests.
CHATML_DEFAULT = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "<|turn|>system\nYou are a small helper.<|turn_end|>\n{% endif %}"
    "<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|turn_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
"""SmolLM2: a system turn of its own where none is given."""

THINKING = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|turn_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
"""Qwen3: an empty block of thinking where thinking is off, and before every answer."""

NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<|turn|>"
    "{% if m['role'] == 'assistant' %}model{% else %}{{ m['role'] }}{% endif %}\n"
    "{{ m['content'] | trim }}<|turn_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>model\n{% endif %}"
)
"""Gemma: refuses a system turn, writes begin-of-text by itself."""

DATED = (
    "{{ bos_token }}<|turn|>system\n\n"
    "Today Date: {{ strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' }}\n\n"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] | trim }}"
    "{% set messages = messages[1:] %}{% endif %}<|turn_end|>"
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n\n{{ m['content'] | trim }}<|turn_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n\n{% endif %}"
)
"""Llama 3: begin-of-text and today's date in every system turn."""

INSTRUCT = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)
"""Mistral: no generation prompt, the answer ends with end-of-text."""

FORGETFUL = (
    "{% for m in messages if m['role'] != 'system' %}"
    "{{ m['role'] | upper }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
"""Leaves the system turn out without a word, and ends an answer with a line feed alone."""

CAPITALS = (
    "{% for m in messages %}<|turn|>{% if m['role'] == 'system' %}{{ m['content'] | upper }}"
    "{% else %}{{ m['content'] }}{% endif %}<|turn_end|>{% endfor %}"
)
"""Writes the system turn in capitals."""

PARTS = (
    "{% for m in messages %}<|turn|>{% for part in m['content'] %}{{ part['text'] }}{% endfor %}"
    "<|turn_end|>{% endfor %}"
)
"""SmolVLM: reads the parts of a message, of which a plain text has none."""
