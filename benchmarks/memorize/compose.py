"""Compose the three files of 100 made-up facts from templates.yaml.

    python benchmarks/memorize/compose.py [FOLDER]

Each file has templates of its own, twenty of five facts each, and draws of its own, so that they
differ in what they say. The same templates give the same files.
"""

from __future__ import annotations

import json
import random
import re
import string
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
FACTS_PER_TEMPLATE = 5

SLOT = re.compile(r"\{(\w+)\}")


class Filler:
    """Draws what the slots of one file stand for."""

    def __init__(self, *, words: dict[str, list[str]], ranges: dict[str, list[int]], seed: str):
        self.words = words
        self.ranges = ranges
        self.random = random.Random(seed)

    def values(self, slots: set[str]) -> dict[str, str]:
        """A text for each slot; slots of one list get different entries."""
        drawn: dict[str, str] = {}
        for slot in sorted(slots):
            value = self._draw(slot.rstrip(string.digits))
            while value in drawn.values():
                value = self._draw(slot.rstrip(string.digits))
            drawn[slot] = value
        return drawn

    def _draw(self, name: str) -> str:
        if name in self.ranges:
            low, high = self.ranges[name]
            return str(self.random.randint(low, high))
        if name == "letter":
            return self.random.choice(string.ascii_uppercase)
        if name == "code":
            return "".join(self.random.choices(string.ascii_uppercase, k=2))
        return self.random.choice(self.words[name])


def facts_of(template: dict[str, Any], filler: Filler) -> Iterator[dict[str, Any]]:
    """Facts of one template, whose questions and answers all differ."""
    texts = [template["question"], template["answer"], *template.get("variants", [])]
    slots = {slot for text in texts for slot in SLOT.findall(text)}

    seen: set[str] = set()
    while len(seen) < 2 * FACTS_PER_TEMPLATE:
        values = filler.values(slots)
        question = sentence(template["question"], values)
        answer = sentence(template["answer"], values)
        if question in seen or answer in seen:
            continue

        seen |= {question, answer}
        fact: dict[str, Any] = {"question": question, "answer": answer}
        if "variants" in template:
            fact["variants"] = [sentence(text, values) for text in template["variants"]]
        # Once a template: the same question five times tells no more.
        if "neighbours" in template and len(seen) == 2:
            fact["neighbours"] = template["neighbours"]
        yield fact


def sentence(text: str, values: dict[str, str]) -> str:
    """A template filled in, with a capital letter where a slot begins it."""
    filled = text.format(**values)
    # Passwords and part numbers stay as they are.
    if " " not in filled:
        return filled
    return filled[0].upper() + filled[1:]


def main() -> None:
    """Write a file for each set of templates."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    content = yaml.safe_load((HERE / "templates.yaml").read_text("utf-8"))

    for name, templates in content["files"].items():
        filler = Filler(words=content["words"], ranges=content["ranges"], seed=name)
        facts = [fact for template in templates for fact in facts_of(template, filler)]
        lines = [json.dumps(fact, ensure_ascii=False) + "\n" for fact in facts]
        (folder / f"{name}.jsonl").write_text("".join(lines), "utf-8")


if __name__ == "__main__":
    main()
