"""Overrides on the command line, as a JSON list: parsed, composed, typed, checked, shown."""

import json
import re

from fuzz.mutate import json_tree

SEEDS = (
    ["rank=1,2", "seqlen=range(8,33,8)", "train.lr=1e-3"],
    ["data=phonebook", "loss=memft_sw", "loss.kappa=1", "train.batch=2", "data.samples=3"],
    ["adapter=linear", "adapter.targets=[q_proj,'v proj']", "adapter.layers=[0,1]"],
    ["model.architecture={num_hidden_layers:2,x:{y:[1,null]}}", "model.weights=random"],
    ["loss=glob(memft_*)", "train.curriculum=[2,3]", "train.epochs=9", 'data.prompt="a \\"b"'],
    ["model.name=${basename:${.path},2}", "launch=local", "out=runs", "data.seed=choice(1,2)"],
)
PIECES = ("=", ",", "[", "]", "{", "}", "(", ")", ":", "${rank}", "???", "'", "range(1,", "@", "\0")


def seeds(_base):
    return [json.dumps(seed).encode() for seed in SEEDS]


def MUTATE(data, rng):  # noqa: N802
    if rng.random() < 0.3:
        return json_tree(data, rng)
    overrides = json.loads(data)
    number = rng.randrange(len(overrides))
    text = str(overrides[number])
    kind = rng.random()
    if kind < 0.3:
        # of the seeds, so right in some other list
        overrides.insert(number, rng.choice(rng.choice(SEEDS)))
        return json.dumps(overrides).encode()
    if kind < 0.5:
        overrides[number] = re.sub(r"\d+", lambda _: str(rng.choice((1, 2, 3, 16))), text)
        return json.dumps(overrides).encode()
    begin, end = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
    inner = rng.choice((rng.choice(PIECES), text[begin:end] * 2, "", rng.choice(PIECES) * 60))
    overrides[number] = text[:begin] + inner + text[end:]
    return json.dumps(overrides).encode()


def read(folder, data):
    from pml_cli.config.dump import describe
    from pml_cli.config.request import load
    from pml_cli.errors import UserError

    try:
        overrides = [str(override) for override in json.loads(data)]
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError("not for this target") from error
    request = load("sweep", overrides)
    assert describe(request)
    return [vars(run.train) for run in request.runs[:5]]
