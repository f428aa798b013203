"""Files of facts, opened as a sweep opens them."""

import hashlib
import json
import random

from pml_cli.config.schema import Run
from pml_cli.data.resolve import resolved_run
from pml_cli.data.source import Sample
from pml_cli.data.sources.jsonl import JsonlData

# What rank 1 of the embedded model knows after some steps.
FACTS = [("Which pump is in hall 3?", "the Kestrel"), ("Who has the key?", "Ilse Varga")]


def write_facts(folder, facts=FACTS, name="facts.jsonl"):
    """Write facts as JSON lines; the file."""
    path = folder / name
    rows = [json.dumps({"question": question, "answer": text}) for question, text in facts]
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


def fact_samples(model, facts, folder, **data):
    """The samples of a JSON-lines file, and its resolved settings.

    Args:
        model: settings of the model.
        facts: (query, target) pairs.
        folder: where the file is written.
        data: settings of the source.
    """
    rows = [json.dumps({"query": query, "target": target}) for query, target in facts]
    text = "\n".join(rows)
    # A file for each content: what was read of a file is kept.
    path = folder / f"facts-{hashlib.sha256(text.encode()).hexdigest()[:8]}.jsonl"
    path.write_text(text)
    run = resolved_run(Run(model=model, data=JsonlData(path=str(path), **data)))
    source = run.data.open(run.model)
    return source.take(source.max_tokens), run.data


def facts(count, vocabulary=101, common=4, seed=0):
    """Samples of unequal lengths that begin alike."""
    draw = random.Random(seed)
    beginning = tuple(range(1, 1 + common))

    def tokens(least, most):
        length = draw.randint(least, most)
        return tuple(draw.randrange(1, vocabulary) for _ in range(length))

    samples = []
    for _ in range(count):
        samples.append(Sample(prompt=beginning + tokens(1, 20), target=tokens(1, 8)))
    return samples
