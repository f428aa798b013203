"""The `pml` lines of the pages, and the files that they call by name."""

from support.markdown import DOCS, ROOT, shell_blocks
from support.shell_lines import commands

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]

FACTS = "".join(
    f'{{"question": "Which pump is in hall {n}?", "answer": "P{n}"}}\n' for n in range(99)
)

# What a user has: everything but run folders.
FILES = {
    "facts.jsonl": FACTS,
    "FILE": FACTS,
    "outputs/probe/RUN/adapter/adapter_model.safetensors": "",
    "notes.txt": "A text about pumps.\n" * 99,
    "my-conf/launch/slurm.yaml": "partition: gpu\n",
}


def pml_lines(page):
    """The words behind `pml` of each of a page's commands."""
    found = [words for block in shell_blocks(page) for words in commands(block)]
    return [words[1:] for words in found if words[0] == "pml"]
