"""A run's config.yaml is read back as it was; what is none is an error of one line."""

import pytest

from pml_cli.config.dump import to_yaml
from pml_cli.config.load import read_run
from pml_cli.config.schema import LinearAdapter, Model, Run, Train
from pml_cli.data.sources.jsonl import JsonlData
from pml_cli.data.sources.mixed import MixedData
from pml_cli.data.sources.phonebook import PhonebookData
from pml_cli.errors import UserError
from pml_cli.training.losses.memft_margin import MemftMarginLoss


@pytest.mark.parametrize(
    "run",
    [
        Run(),
        Run(
            rank=3,
            seed=2,
            data=PhonebookData(digits=4),
            adapter=LinearAdapter(layers=[1, 2]),
            loss=MemftMarginLoss(margin=1.5),
        ),
        Run(
            data=MixedData(random_share=0.25),
            train=Train(epochs=9, curriculum=[2, 4]),
            model=Model(layer=1),
        ),
        Run(data=JsonlData(path="facts.jsonl")),
        Run(data=JsonlData(path="f", separator="\n", end="\n\n", begin=False)),
        Run(data=JsonlData(path="f", chat=True, system=" a\n\n b", date="2024-02-29")),
    ],
    ids=lambda run: run.data.source,
)
def test_a_run_is_read_back_as_it_was(run, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(run))
    assert read_run(path) == run


@pytest.mark.parametrize(
    "text",
    ["rank: 3", "[", "rank: 3\nseqlen: 2\nseed: 0\nmodel: {colour: red}"],
    ids=["incomplete", "not YAML", "unknown setting"],
)
def test_a_file_that_is_no_config_is_named(text, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="not the settings of a run") as error:
        read_run(path)
    assert "\n" not in str(error.value)
