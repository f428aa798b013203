"""`pml measure` on real weights: an adapter of a plain loop of PEFT, by plain computation."""

import json
import math

import pytest
import torch
from support.sweeps import pml

from real import plain

TEXT = (
    "The night porter of the Hotel Adler wrote every guest's name into two books, "
    "one of leather and one of air, and in the morning he compared them. "
)
STEPS = 12


@pytest.fixture(scope="module")
def trained(smollm2_folder, tmp_path_factory):
    """Folder with text.txt, and adapter/ as PEFT writes it; and the ids of the text."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("plain")
    (folder / "text.txt").write_text(TEXT.strip())
    tokenizer = plain.tokenizer_of(smollm2_folder)
    target = tokenizer(TEXT.strip(), add_special_tokens=False).input_ids

    torch.manual_seed(0)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        use_rslora=True,
        target_modules=["down_proj", "q_proj"],
        layers_to_transform=[18, 20],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(plain.load_base(smollm2_folder), config).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0)
    ids = torch.tensor([[tokenizer.bos_token_id, *target]])
    for _ in range(STEPS):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / "adapter")
    return folder, [tokenizer.bos_token_id], target


@pytest.fixture(scope="module")
def entry(trained):
    folder, _, _ = trained
    measured = pml(
        folder, "measure", "adapter", "text.txt", "model.device=cpu", "--no-harm", "--json"
    )
    assert measured.returncode == 0, measured.stderr
    return json.loads(measured.stdout)


def test_bits_margins_recall_and_chance_are_those_of_plain_torch(entry, trained, smollm2_folder):
    folder, prompt, target = trained
    base = plain.losses(plain.load_base(smollm2_folder), prompt, target)
    model = plain.load_adapted(smollm2_folder, folder / "adapter")
    logits = plain.logits(model, prompt, target)
    nll = torch.nn.functional.cross_entropy(logits, torch.tensor(target), reduction="none")
    cooler = torch.nn.functional.cross_entropy(logits / 0.7, torch.tensor(target), reduction="sum")

    assert entry["target_tokens"] == len(target)
    assert entry["base_loss"] == pytest.approx(base.mean().item(), abs=1e-4)
    assert entry["final_loss"] == pytest.approx(nll.mean().item(), abs=1e-4)
    bits = (base.sum() - nll.sum()).item() / math.log(2)
    assert entry["bits_gained"] == pytest.approx(bits, abs=1e-2)
    assert entry["log10_p"] == pytest.approx(-nll.sum().item() / math.log(10), abs=1e-2)
    assert entry["log10_p_07"] == pytest.approx(-cooler.item() / math.log(10), abs=1e-2)

    of_target = logits.gather(1, torch.tensor(target)[:, None])[:, 0]
    others = logits.scatter(1, torch.tensor(target)[:, None], -torch.inf).amax(1)
    margins = of_target - others
    assert entry["least_margin"] == pytest.approx(margins.min().item(), abs=1e-3)
    correct = margins > 0
    assert entry["token_accuracy"] == pytest.approx(correct.float().mean().item())
    assert entry["recall_from_8"] == float(correct[8:].all())
    # The training has taught it something, and not all.
    assert entry["final_loss"] < entry["base_loss"] - 0.5

    written = plain.generate(model, prompt, max_new_tokens=len(target))
    same = [a == b for a, b in zip(written, target, strict=False)]
    assert entry["free_accuracy"] == pytest.approx(sum(same) / len(target))
    start = same.index(False) if False in same else len(same)
    assert entry["prefix_share"] == pytest.approx(start / len(target))
