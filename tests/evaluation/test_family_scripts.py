"""On a small random model of every family: what a run recalls, its adapter's own script prints.

A dozen families are slow tests; the others, a quarter of an hour, are run by `-m families`.
"""

import json
import shutil

import pytest
import transformers
from support.adapter_script import run_script_for
from support.family_matrix import REPRESENTATIVE, SUPPORTED, linear_adapter, small_fields
from support.models import local, save_random

from pml_cli.config.schema import TINY
from pml_cli.model.loading import load_model

FACTS = {"Box one:": "red", "Box two:": "blue"}

# At one of these rates a random model of this size learns two short answers and their ends.
TRAINING = ("rank=16", "train.steps=300", "train.lr=0.01,0.03", "seqlen=all", "model.device=cpu")

# Families whose layers hold no MLP module.
LINEAR_ONLY = ("biogpt", "opt", "xglm")


@pytest.fixture
def base(tmp_path):
    """base(family): the folder of a small random model with the tokenizer of the embedded one."""

    def make(family):
        fields = small_fields(family)
        tiny = json.loads((TINY / "config.json").read_text())
        ends = dict.fromkeys(("bos_token_id", "eos_token_id"), 0)
        # No padding token: some families set its embedding to zero, here that of the end.
        ends["pad_token_id"] = None
        fields.get("text_config", fields).update(vocab_size=tiny["vocab_size"], **ends)
        # Under the low cap of the matrix a random model learns nothing.
        fields.pop("final_logit_softcapping", None)
        folder = save_random(family, fields, tmp_path / "base")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TINY / name, folder)
        return folder

    return make


def marked(family):
    mark = pytest.mark.slow if family in REPRESENTATIVE else pytest.mark.families
    return pytest.param(family, marks=mark)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("placement", ["linear", "mlp_block"])
@pytest.mark.parametrize("family", [marked(family) for family in SUPPORTED])
def test_the_script_prints_what_was_recalled(quick, tmp_path, base, family, placement):
    if family not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {family}")
    folder = base(family)
    rows = [json.dumps({"query": query, "target": target}) for query, target in FACTS.items()]
    (tmp_path / "facts.jsonl").write_text("\n".join(rows))
    options = ["data=jsonl", "data.path=facts.jsonl", "model=hf", "model.path=base"]
    options += [*TRAINING, "model.layer=1", f"adapter={placement}", "out=o"]
    if placement == "linear":
        targets = linear_adapter(load_model(local(folder))).targets
        options.append(f"adapter.targets=[{','.join(targets)}]")

    done = quick("sweep", *options)
    if placement == "mlp_block" and family in LINEAR_ONLY:
        assert done.returncode == 2
        assert "use adapter=linear" in done.stderr
        return
    assert done.returncode == 0, done.stdout + done.stderr

    recalled = []
    for result in tmp_path.glob("o/*/result.json"):
        text = (result.parent / "samples.jsonl").read_text()
        samples = [json.loads(line) for line in text.splitlines()]
        whole = [sample for sample in samples if sample["whole"]]
        questions = [sample["turns"][-1][1] for sample in whole]
        targets = [FACTS[question] for question in questions]
        assert run_script_for(result.parent, questions, here=True) == targets
        recalled.append(len(whole))
    # Not each random model learns both in so few steps.
    assert max(recalled) > 0
