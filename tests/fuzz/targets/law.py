"""law.json: `pml predict` about a rank, a length, both, bits, and a model that is not in it."""

import io
import json

from catalogue.law_files import LINE

from fuzz.folders import first
from fuzz.mutate import json_tree

MUTATE = json_tree


def seeds(base):
    content = json.loads(first(base, "law/fit/law.json"))
    (group,) = content["groups"]
    # The chosen law and one beside it, a few draws: most of the file is neither.
    group["laws"] = [law for law in group["laws"] if law["name"] == group["chosen"]]
    for columns in content["draws"].values():
        for name in columns:
            columns[name] = columns[name][:5]
    content["bits_lines"] = [LINE]
    return [json.dumps(content).encode()]


def read(folder, data):
    from rich.console import Console

    from pml_cli.commands import predict
    from pml_cli.config.reports import Predict

    path = folder / "law.json"
    path.write_bytes(data)
    questions = (
        ({"rank": [4.0], "seqlen": [100.0]}, "verbatim"),
        ({"seqlen": [100.0]}, "loss=2"),
        ({"rank": [4.0]}, "bits=300"),
        ({"seqlen": [100.0]}, "verbatim"),
        ({"seqlen": [100.0], "base": 2.0, "per_rank": 512.0}, "verbatim"),
    )
    answers = []
    for asked, target in questions:
        shown = io.StringIO()
        console = Console(file=shown, width=80)
        predict.run([path], Predict(**asked), console, target, as_json=True)
        answers.append(json.loads(shown.getvalue(), parse_constant=float))
        predict.run([path], Predict(**asked), Console(file=io.StringIO(), width=80), target)
    return answers
