"""Requests: what is asked for arrives typed, each cell once; every fault is one line."""

import json
import re
import shlex
import time
from pathlib import Path

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra

from pml_cli.config import option_files
from pml_cli.config import sweep_file as sweep_files
from pml_cli.config.dump import describe, to_yaml
from pml_cli.config.grid import MAX_CELLS
from pml_cli.config.load import option_settings
from pml_cli.config.memorize import Limits, parsed_limits
from pml_cli.config.registry import GROUPS
from pml_cli.config.reports import Fit, Transition
from pml_cli.config.request import load, load_memorize, load_report
from pml_cli.config.schema import ALL_TOKENS, LinearAdapter, Run
from pml_cli.data.sources.jsonl import JsonlData
from pml_cli.data.sources.mixed import MixedData
from pml_cli.data.sources.random import RandomData
from pml_cli.errors import UserError
from pml_cli.training.losses.memft_margin import MemftMarginLoss
from pml_cli.training.losses.memft_ot import MemftOtLoss
from pml_cli.training.losses.memft_sw import MemftSwLoss
from pml_cli.training.losses.sft import SftLoss

# Overrides that an option needs because its YAML file has ??? in their place.
NEEDS = {
    "model=hf": ["model.path=org/base"],
    "data=jsonl": ["data.path=facts.jsonl"],
    "data=hf": ["data.path=org/set"],
}


def needs_overrides(group: str, option: str) -> bool:
    """Whether an option has ??? for a setting, and `NEEDS` has no value for it."""
    path = option_files.option_file(group, option)
    assert path is not None
    return f"{group}={option}" not in NEEDS and "???" in path.read_text("utf-8")


OPTIONS = [
    (group, option)
    for group in GROUPS
    for option in option_files.options(group)
    if not needs_overrides(group, option)
]


def refusal(command: str, *overrides: str, **more: object) -> str:
    """The message of the error that a request is refused with."""
    with pytest.raises(UserError) as caught:
        load(command, list(overrides), **more)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.fixture
def sweep_file(tmp_path: Path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.mark.parametrize("verb", ["probe", "sweep"])
def test_without_overrides_the_dataclass_defaults_hold(verb):
    request = load(verb, [])
    assert request.runs == [Run()]
    assert request.out == Path("outputs") / verb
    assert request.swept == []


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_shipped_option_composes(group, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "facts.jsonl").write_text("{}\n")
    chosen = f"{group}={option}"
    run = load("probe", [chosen, *NEEDS.get(chosen, [])]).runs[0]
    settings = getattr(run, group, None)
    label = getattr(settings, "source", getattr(settings, "kind", option))
    # An option may be another class's settings with other values.
    assert label == option or settings == option_settings(group, option)


@pytest.mark.parametrize("name", sweep_files.names())
def test_every_shipped_sweep_loads(name, tmp_path, monkeypatch):
    command = "memft" if name == "memft" else "sweep"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "facts.jsonl").write_text("{}\n")
    try:
        assert load(command, [], Path(name)).runs
    except UserError as error:
        # A sweep that needs the user's data says so, and loads with it.
        assert "data.path: needed" in str(error)
        assert load(command, ["data.path=facts.jsonl"], Path(name)).runs


@pytest.mark.parametrize("name", ["qwen3_8b", "llama31_8b", "qwen3_0_6b", "smollm2_135m"])
def test_architectures_are_what_transformers_reads(name):
    import transformers

    fields = load("probe", [f"model={name}"]).runs[0].model.architecture
    config = transformers.AutoConfig.for_model(**fields)
    assert {key: getattr(config, key) for key in fields if key != "rope_parameters"} == {
        key: value for key, value in fields.items() if key != "rope_parameters"
    }
    assert config.rope_parameters["rope_theta"] == fields["rope_parameters"]["rope_theta"]


def test_all_combinations_in_the_order_asked_for():
    request = load("sweep", ["rank=4,8", "seqlen=range(10,40,10)"])
    assert [(r.rank, r.seqlen) for r in request.runs] == [
        (4, 10),
        (4, 20),
        (4, 30),
        (8, 10),
        (8, 20),
        (8, 30),
    ]
    assert request.swept == ["rank", "seqlen"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("range(1,4)", [1, 2, 3]),
        ("choice(3,1)", [3, 1]),
        ("range(9,1,-4)", [9, 5]),
        ("range(1,8,3)", [1, 4, 7]),
        ("range(1,7,3)", [1, 4]),
        ("sort(3,1,2)", [1, 2, 3]),
        ("4,4,8", [4, 8]),
        ("'5'", [5]),
    ],
)
def test_sweep_grammar(text, expected):
    assert [r.rank for r in load("sweep", [f"rank={text}"]).runs] == expected


def test_decimal_ranges_do_not_drift():
    request = load("sweep", ["train.lr=range(0.1,0.5,0.1)"])
    assert [r.train.lr for r in request.runs] == [0.1, 0.2, 0.3, 0.4]


def test_groups_by_list_and_glob():
    assert [r.data.source for r in load("sweep", ["data=random,rule"]).runs] == ["random", "rule"]
    assert [r.model.name for r in load("sweep", ["model=glob(qwen*)"]).runs] == [
        "qwen3_0_6b",
        "qwen3_8b",
    ]


def test_a_key_of_one_swept_option_applies_to_that_one():
    request = load("sweep", ["data=random,mixed", "data.random_share=0.2,0.4"])
    shares = [r.data.random_share if isinstance(r.data, MixedData) else None for r in request.runs]
    assert shares == [None, 0.2, 0.4]


def test_values_are_typed_by_the_dataclass():
    overrides = [
        "adapter=linear",
        "adapter.targets=[q_proj,v_proj]",
        "adapter.layers=[1,2]",
        "train.lr=1",
        "model.layer=null",
    ]
    run = load("probe", overrides).runs[0]
    assert run.adapter == LinearAdapter(targets=["q_proj", "v_proj"], layers=[1, 2])
    assert isinstance(run.train.lr, float)
    assert run.model.layer is None


def test_below_a_mapping_single_fields_can_be_set():
    request = load(
        "sweep",
        ["model=qwen3_0_6b", "model.weights=random", "model.architecture.num_hidden_layers=2,4"],
    )
    assert [r.model.architecture["num_hidden_layers"] for r in request.runs] == [2, 4]
    assert request.runs[0].model.architecture["hidden_size"] == 1024


@pytest.mark.parametrize("text", ["~/{}", '"~/{}"', "'~/{}'"])
def test_paths_below_the_home_folder(text, tmp_path, monkeypatch):
    """As typed, in quotes, in a list."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "notes.txt").write_text("words")
    models = f"model.path={text.format('a/final')},{text.format('b')}"
    data = f"data.path={text.format('notes.txt')}"
    runs = load("sweep", ["model=hf", models, "model.name=x", "data=text", data]).runs
    assert [run.model.path for run in runs] == [f"{tmp_path}/a/final", f"{tmp_path}/b"]
    assert {run.data.path for run in runs} == {f"{tmp_path}/notes.txt"}


def test_a_tilde_elsewhere_is_no_home_folder():
    assert "cannot be parsed by Hydra's grammar" in refusal("probe", "data=text", "data.prompt=~/x")
    (run,) = load("probe", ["model=hf", 'model.path="org/a~/b"', "model.name=x"]).runs
    assert run.model.path == "org/a~/b"


def test_interpolations_follow_each_cell():
    request = load("sweep", ["rank=4,8", "adapter=linear", "adapter.alpha=${rank}"])
    assert [r.adapter.alpha for r in request.runs] == [4.0, 8.0]  # type: ignore[attr-defined]
    assert [r.model.name for r in load("sweep", ["model=hf", "model.path=a/b,c"]).runs] == [
        "b",
        "c",
    ]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/final/", "final"),
        ('"my model (2)"', "my-model-2"),
        (".", "here"),
        ("..", "above"),
        ("'模型'", "model"),
    ],
)
def test_a_model_is_named_after_its_folder_whatever_that_is_called(
    tmp_path, monkeypatch, path, name
):
    (tmp_path / "above" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "above" / "here")
    (run,) = load("probe", ["model=hf", f"model.path={path}"]).runs
    assert run.model.name == name


def test_memft_compares_four_losses_unless_one_is_named():
    assert [r.loss for r in load("memft", []).runs] == [
        SftLoss(),
        MemftOtLoss(),
        MemftSwLoss(),
        MemftMarginLoss(),
    ]
    request = load("memft", ["loss=sft,memft_ot", "loss.threshold=0.5,1.0"])
    assert [r.loss for r in request.runs] == [
        SftLoss(),
        MemftOtLoss(threshold=0.5),
        MemftOtLoss(threshold=1.0),
    ]
    assert request.swept == ["loss", "loss.threshold"]
    assert [type(r.loss) for r in load("memft", ["loss=memft_ot"]).runs] == [MemftOtLoss]


def test_axolotls_values_of_the_window_and_lists_of_boundaries():
    axolotl = MemftSwLoss(kappa=1.0, tau=64.0, window=64, floor=0.0)
    assert load("probe", ["loss=memft_sw_axolotl"]).runs[0].loss == axolotl
    assert load("probe", ["loss=memft_margin_facts"]).runs[0].loss == MemftMarginLoss(switch=1.0)
    runs = load("sweep", ["train.curriculum=[],[2,4]", "data=phonebook"]).runs
    assert [run.train.curriculum for run in runs] == [[], [2, 4]]


def test_ten_thousand_cells_are_quick():
    start = time.process_time()
    assert (
        len(load("sweep", ["rank=range(1,101)", "data.seed=range(0,10)", "seed=range(0,10)"]).runs)
        == 10_000
    )
    assert time.process_time() - start < 3


def test_an_application_s_own_hydra_stays(tmp_path):
    from hydra import initialize_config_dir

    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        before = GlobalHydra.instance().hydra
        load("probe", [])
        with pytest.raises(UserError):
            load("probe", ["rank=x"])
        assert GlobalHydra.instance().hydra is before


def test_to_yaml_names_every_setting():
    run = load("probe", ["model=llama31_8b", "rank=3"]).runs[0]
    tree = yaml.safe_load(to_yaml(run))
    assert list(tree) == ["rank", "seqlen", "seed", "model", "data", "adapter", "loss", "train"]
    assert tree["model"]["architecture"]["rope_parameters"]["factor"] == 8.0
    assert tree["train"]["clip"] == 1.0


def test_describe_counts_the_cells():
    text = describe(load("sweep", ["rank=4,8", "out=here"]))
    assert text.startswith("# the first of 2 cells; swept: rank\n")
    assert yaml.safe_load(text)["out"] == "here"
    assert yaml.safe_load(text)["launch"]["kind"] == "inline"


def test_describe_explains_every_setting():
    settings = load("probe", ["model=qwen3_0_6b", "model.revision='a: # b'"])
    text = describe(settings)
    tree = yaml.safe_load(text)
    assert tree == {**yaml.safe_load(to_yaml(settings.runs[0])), "out": "outputs/probe"} | {
        "launch": tree["launch"]
    }
    lines = text.splitlines()
    assert any(line.startswith("  lr: null ") and "# peak learning rate" in line for line in lines)
    assert any("# Mean cross-entropy" in line for line in lines)
    uncommented = [line for line in lines if "#" not in line]
    assert {line.split(":")[0] for line in uncommented if not line.startswith("    ")} == {*GROUPS}

    # YAML folds a long text; the comment must not become part of it.
    folded = load("probe", [f"data.prompt='{'long words # ' * 20}'"])
    assert yaml.safe_load(describe(folded))["data"]["prompt"] == "long words # " * 20

    fit = describe(load_report("fit", ["x=parameters"]))
    assert yaml.safe_load(fit)["x"] == "parameters"
    assert fit.count("  # ") == len(fit.splitlines())


def test_fit_settings():
    assert load_report("fit", []) == Fit()
    assert load_report("fit", ["saturated_below=0.5", "figures=false", "out='a b'"]) == Fit(
        saturated_below=0.5, out="a b", figures=False
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rnak=3", "rnak: no such key"),
        ("figures=maybe", "must be true or false"),
        ("saturated_below=1,2", "takes one value"),
        ("draws=-1", "at least 0"),
    ],
)
def test_fit_refuses(override, expected):
    with pytest.raises(UserError, match=expected):
        load_report("fit", [override])


REFUSED = [
    ("probe", ["rnak=4"], "did you mean 'rank'?"),
    ("probe", ["steps=4"], "did you mean 'train.steps'?"),
    ("probe", ["train.step=4"], "did you mean 'train.steps'? allowed: train.batch"),
    ("probe", ["rank=four"], "rank=four: must be an integer"),
    ("probe", ["rank=4.5"], "rank=4.5: must be an integer"),
    ("probe", ["rank=4.0"], "rank=4.0: must be an integer"),
    ("probe", [f"train.steps={10**29}"], "must be from 1 to 10,000,000"),
    ("probe", [f"model.name={'a' * 300}"], "'.', '_' and '-', at most 150"),
    (
        "probe",
        ["adapter=linear", "adapter.alpha=inf"],
        "adapter.alpha=inf: must be above 0 and finite",
    ),
    ("probe", ["rank=true"], "rank=true: must be an integer"),
    ("probe", ["train.decode=7.5"], "must be true or false"),
    ("probe", ["adapter=linear", "adapter.layers=[a]"], "must be null or a list"),
    ("probe", ["rank=null"], "rank=null: must be an integer"),
    ("probe", ["rank=${seqlen}"], "must be an integer"),
    ("probe", ["adapter=linear", "adapter.alpha=${rnk}"], "Interpolation key 'rnk' not found"),
    ("probe", ["model=tinny"], "did you mean 'tiny'? allowed: hf,"),
    ("probe", ["model=null"], "model=null: no such option"),
    ("probe", ["model=hf"], "model.path: needed by model=hf"),
    ("probe", ["data=jsonl"], "data.path: needed by data=jsonl"),
    ("probe", ["data.random_share=0.1"], "(of data=random); data=mixed has it"),
    ("probe", ["data.source=text"], "give data=..."),
    ("probe", ["data=text", "data.path=nowhere.txt"], "data.path=nowhere.txt: no such file"),
    ("probe", ["data=jsonl", "data.path=/tmp"], "data.path=/tmp: a folder, not a file"),
    ("probe", ["rank=4", "rank=8"], "rank: given twice"),
    ("probe", ["rank=4,8"], "rank=4,8: a probe is one run; for several values use `pml sweep`"),
    ("probe", ["++rank=4"], "+ is not supported"),
    ("probe", ["~rank"], "~ is not supported, every setting has a value; write rank=VALUE"),
    ("probe", ["+rank=4"], "every setting has a value; write rank=4"),
    ("probe", ["train.steps=1e400"], "train.steps=1e400: a number that is too large; must be at"),
    ("probe", ["train.steps=inf"], "train.steps=inf: must be an integer"),
    ("probe", ["adapter=linear", "adapter.layers=[1,-1e999]"], "a number that is too large"),
    ("probe", ["rank"], "not of the form key=value"),
    ("probe", ["=4"], "not of the form key=value"),
    ("probe", ["rank=[4"], "cannot be parsed by Hydra's grammar"),
    (
        "probe",
        ["data=text", "data.path=/a (b)/x"],
        "quote special characters: 'data.path=\"/a (b)/x\"'",
    ),
    (
        "probe",
        ["data=text", "data.path=/a/it's.txt"],
        """quote special characters: 'data.path="/a/it'"'"'s.txt"'""",
    ),
    ("probe", ["model@x=tiny"], "Hydra's @package syntax is not"),
    ("probe", ["hydra.run.dir=x"], "hydra.run.dir: no such key"),
    ("sweep", ["rank=interval(1,4)"], "an interval has no list of values"),
    ("sweep", ["rank=glob(*)"], "glob() is for groups"),
    ("sweep", ["model=glob(x*)"], "no values"),
    ("sweep", ["rank=range(9,1)"], "no values"),
    ("sweep", ["rank=range(1,9,0)"], "a step that is not 0"),
    ("sweep", ["seed=range(0,1000000000)"], "at most 100000 cells"),
    ("sweep", ["rank=range(1,1001)", "seed=range(0,1001)"], f"1001000 cells: at most {MAX_CELLS}"),
    ("sweep", ["out=a,b"], "out: takes one value for the whole sweep"),
    ("sweep", ["launch.pack_tokens=1,2"], "launch.pack_tokens: takes one value"),
    (
        "sweep",
        ["launch=local", "model.device=cuda:1"],
        "model.device=cuda:1: must be auto, cpu or cuda with launch=local",
    ),
]


@pytest.mark.parametrize(
    ("verb", "overrides", "expected"), REFUSED, ids=lambda v: v[-1] if isinstance(v, list) else None
)
def test_refuses_on_one_line(verb, overrides, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refusal(verb, *overrides)
    assert expected in line
    assert len(line.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_all_faults_at_once():
    assert (
        refusal("probe", "rank=0", "train.lr=0", "train.schedule=cosin", "rnak=1").count("\n") == 3
    )
    lines = refusal("sweep", "rank=range(-30,0)").splitlines()
    assert len(lines) == 11
    assert lines[-1] == "and 20 more"


def test_faults_of_every_kind_are_named_together(sweep_file):
    lines = refusal("sweep", "rank=0", "seqlen=-1", "loss=memft_oz", "train.lrr=3").splitlines()
    assert sorted(line.split(":")[0] for line in lines) == [
        "loss=memft_oz",
        "rank=0",
        "seqlen=-1",
        "train.lrr",
    ]
    # Without the option the keys below it cannot be judged; a value of another type hides no fault.
    lines = refusal("probe", "loss=memft_oz", "loss.threshold=1", "rank=x", "seqlen=0").splitlines()
    assert [line.split(":")[0] for line in lines] == ["loss=memft_oz", "rank=x", "seqlen=0"]

    file = sweep_file("rank: [0, 1]\nmodel: [tiny, tinny]\nseed: interval(0,1)\n")
    lines = refusal("sweep", "launch.pack_tokens=-1", "out=a,b", file=file).splitlines()
    assert len(lines) == 5


def test_faults_of_a_report_are_named_together():
    with pytest.raises(UserError) as caught:
        load_report("fit", ["draws=-1", "x=size", "figures=maybe", "rnak=1", "out"])
    assert len(caught.value.faults) == 5


def test_sweep_file_keys_lists_strings_and_nesting(sweep_file):
    file = sweep_file(
        "rank: [4, 8]\nseqlen: range(10,30,10)\n"
        "train:\n  steps: 7\n  lr: [1e-2, 1e-3]\ndata: mixed\n"
    )
    request = load("sweep", [], file)
    assert len(request.runs) == 8
    assert {r.train.steps for r in request.runs} == {7}
    assert {r.train.lr for r in request.runs} == {0.01, 0.001}
    assert request.swept == ["rank", "seqlen", "train.lr"]


def test_command_line_wins_over_the_file(sweep_file):
    file = sweep_file("rank: [4, 8]\nseed: [0, 1]\n")
    request = load("sweep", ["rank=2", "out=here"], file)
    assert [(r.rank, r.seed) for r in request.runs] == [(2, 0), (2, 1)]
    assert request.swept == ["seed"]


def test_grids_are_united_without_duplicates(sweep_file):
    file = sweep_file(
        "seqlen: 10\ngrids:\n- rank: [4, 8]\n- {rank: [8, 16], seed: 0}\n"
        "- {data: mixed, data.random_share: [0.1]}\n"
    )
    request = load("sweep", [], file)
    assert [(r.rank, r.data.source) for r in request.runs] == [
        (4, "random"),
        (8, "random"),
        (16, "random"),
        (8, "mixed"),
    ]
    assert request.swept[:1] == ["rank"]
    assert "data" in request.swept


TEXTS_OF_FILES = [
    "../my data/nötes.txt",
    "my grid ü",
    "it's #1; 50 % (a)",
    "C:\\ü",
    r"\\srv\notes.txt",
    "Recite: ",
    "two\nlines",
    '"Hi" she said',
    "[INST] Wo?",
    "a=b",
    " ",
]


@pytest.mark.parametrize("text", TEXTS_OF_FILES)
def test_a_text_of_a_sweep_file_that_is_no_sweep_means_itself(sweep_file, text):
    written = json.dumps(text, ensure_ascii=False)
    request = load("sweep", [], sweep_file(f"rank: 1,2,4\ndata: text\ndata.prompt: {written}\n"))
    assert [run.rank for run in request.runs] == [1, 2, 4]
    assert {run.data.prompt for run in request.runs} == {text}


@pytest.mark.parametrize("text", ["notes, v(2)=ä.txt", "f(ü)", "ü, ${rank}"])
def test_what_looks_like_several_values_goes_into_a_list(sweep_file, text):
    line = refusal("sweep", file=sweep_file(f"data: text\ndata.prompt: {json.dumps(text)}\n"))
    assert line.startswith(str(sweep_file("")))
    assert "cannot be parsed by Hydra's grammar" in line
    (remedy,) = re.findall(r"a text that is one value goes into a list: (.*)$", line)
    request = load("sweep", [], sweep_file(f"data: text\ndata.prompt: {remedy}\n"))
    assert [run.data.prompt for run in request.runs] == [text]


def test_the_remedy_of_a_command_line_can_be_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in ("it's.txt", 'a "b" c;', "ü", 'it\'s "so" \\ ü', "$HOME ü `x`"):
        line = refusal("probe", "data=text", f"data.prompt={value}")
        typed = shlex.split(line.partition("quote special characters: ")[2])
        request = load("probe", ["data=text", *typed])
        assert request.runs[0].data.prompt == value


@pytest.mark.parametrize("name", ["law", "law.yaml", "sweeps/law.yaml"])
def test_shipped_sweeps_are_found_by_name(name, tmp_path, monkeypatch):
    (tmp_path / "law.yaml").write_text("rank: [4, 8]\n")
    monkeypatch.setattr(sweep_files, "shipped", lambda _: tmp_path)
    monkeypatch.chdir("/")
    assert len(load("sweep", [], Path(name)).runs) == 2
    assert "those that come with pml: law" in refusal("sweep", file=Path("lav"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- rank\n", "must be a mapping"),
        ("rank\n", "must be a mapping"),
        ("", "empty"),
        ("{}", "empty"),
        ("rank: [4\nx: }", "line 2"),
        ("rank: 4\nrank: 8\n", "duplicate key rank"),
        ("train.lr: 1\ntrain: {lr: 2}\n", "train.lr is given twice"),
        (b"\xff\xfe", "not UTF-8"),
        ("grids: 3\n", "grids must be a list of mappings"),
        ("rank: []\n", "rank: no values"),
        ("rank: interval(1,2)\n", "mine.yaml: rank=interval(1,2): an interval has no list"),
        ("rank: rnage(1,9)\n", "mine.yaml: rank=rnage(1,9): cannot be parsed"),
        ("rank: 1;2\n", "rank=1;2: must be an integer"),
        ("rank=4: x\n", "rank=4: no such key"),
        ("model: [tiny, tinny]\n", "did you mean 'tiny'?"),
        ("rank: [4, four]\n", "rank=four: must be an integer"),
        ("grids:\n- out: a\n- out: b\n", "out: takes one value"),
    ],
)
def test_sweep_file_faults(sweep_file, text, expected):
    line = refusal("sweep", file=sweep_file(text))
    assert expected in line
    assert len(line.splitlines()) == 1


@pytest.fixture
def user_conf(tmp_path: Path):
    folder = tmp_path / "my conf"
    for group in ("model", "data", "train"):
        (folder / group).mkdir(parents=True)
    return folder


def test_a_user_s_folder_adds_options_and_wins(user_conf):
    (user_conf / "data/mine.yaml").write_text("source: mixed\nrandom_share: 0.1\n")
    (user_conf / "train/default.yaml").write_text("steps: 7\n")
    run = load("probe", ["data=mine"], config_dir=user_conf).runs[0]
    assert run.data == MixedData(random_share=0.1)
    assert run.train.steps == 7
    assert load("probe", []).runs[0].data == RandomData()
    assert "mine" in refusal("probe", "data=mina", config_dir=user_conf)


def test_an_option_of_the_name_of_a_kind_need_not_say_it(user_conf):
    (user_conf / "data/mixed.yaml").write_text("random_share: 0.1\n")
    assert load("probe", ["data=mixed"], config_dir=user_conf).runs[0].data == MixedData(
        random_share=0.1
    )


def test_a_user_s_root_file_has_to_choose_the_options(user_conf):
    (user_conf / "sweep.yaml").write_text("defaults: [data: random]\nrank: 4\n")
    line = refusal("sweep", config_dir=user_conf)
    assert line.startswith("sweep.yaml: chooses no option of model, adapter, loss, train, launch")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "source: mixed\nrandom_shar: 0.1\n",
            "data/mine.yaml: data.random_shar: no such key; did you mean 'data.random_share'?",
        ),
        ("source: mixed\nrandom_share: lots\n", "data.random_share=lots: must be a number"),
        ("source: mixd\n", "did you mean 'mixed'?"),
        ("chat: true\n", "data/mine.yaml: data.source="),
        ("source: mixed\n_target_: os.system\n", "no such key"),
        ("source: [\n", "mine"),
        ("- a\n", "mine"),
        ("source: mixed\nrandom_share: 2\n", "data.random_share=2: must be from 0 to 1"),
    ],
)
def test_faults_of_a_user_s_option(user_conf, text, expected):
    (user_conf / "data/mine.yaml").write_text(text)
    line = refusal("probe", "data=mine", config_dir=user_conf)
    assert expected in line
    assert len(line.splitlines()) == 1


def test_a_user_s_folder_sets_the_defaults_of_a_report(user_conf):
    (user_conf / "fit.yaml").write_text("draws: 7\nx: parameters\n")
    (user_conf / "predict.yaml").write_text("defaults: [_self_]\nrank: [4, 8]\n")
    assert load_report("fit", ["x=rank"], user_conf) == Fit(draws=7)
    assert load_report("predict", [], user_conf).rank == [4.0, 8.0]
    assert load_report("transition", [], user_conf) == Transition()
    (user_conf / "fit.yaml").write_text("drawz: 7\n")
    with pytest.raises(UserError, match="drawz: no such key; did you mean 'draws'"):
        load_report("fit", [], user_conf)


def test_a_user_s_folder_may_choose_the_losses_to_compare(user_conf):
    shipped = Path(option_files.shipped("conf") / "memft.yaml").read_text()
    losses = "compare: [sft, memft_sw]"
    (user_conf / "memft.yaml").write_text(
        shipped.replace("compare: [sft, memft_ot, memft_sw, memft_margin]", losses)
    )
    request = load("memft", [], config_dir=user_conf)
    assert [run.loss.kind for run in request.runs] == ["sft", "memft_sw"]
    (user_conf / "memft.yaml").write_text(shipped.split("compare:")[0])
    assert len(load("memft", [], config_dir=user_conf).runs) == 4


@pytest.mark.parametrize("value", ["null", "5", "sft", "[]"])
def test_the_losses_to_compare_are_a_list(value, user_conf):
    shipped = Path(option_files.shipped("conf") / "memft.yaml").read_text()
    (user_conf / "memft.yaml").write_text(f"{shipped.split('compare:')[0]}compare: {value}")
    with pytest.raises(UserError, match=r"memft\.yaml: compare=.*must be a list of losses"):
        load("memft", [], config_dir=user_conf)


@pytest.mark.parametrize(("kind", "value"), [("facts", "[1]"), ("facts", "5"), ("texts", "seqlen")])
def test_what_a_kind_of_data_is_trained_with_is_a_mapping(kind, value, user_conf):
    shipped = Path(option_files.shipped("conf") / "memorize.yaml").read_text()
    (user_conf / "memorize.yaml").write_text(f"{shipped.split('facts:')[0]}{kind}: {value}\n")
    data = "data=phonebook" if kind == "facts" else "data=random"
    with pytest.raises(UserError, match=rf"memorize\.yaml: {kind}: must be a mapping of settings"):
        load_memorize([data], Limits(), user_conf)


def test_a_text_among_what_a_kind_of_data_is_trained_with_means_itself(user_conf, tmp_path):
    ours = option_files.shipped("conf") / "memorize.yaml"
    added = 'facts:\n  data.chat: true\n  data.system: "Grüße, it\'s  me"'
    text = ours.read_text("utf-8").replace("facts:", added, 1)
    (user_conf / "memorize.yaml").write_text(text, "utf-8")
    (tmp_path / "facts.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    asked = load_memorize([str(tmp_path / "facts.jsonl")], Limits(), user_conf)
    assert asked.request.runs[0].data.system == "Grüße, it's  me"


def test_an_option_that_holds_a_number_is_refused(user_conf):
    (user_conf / "loss").mkdir(exist_ok=True)
    (user_conf / "loss" / "five.yaml").write_text("5\n")
    with pytest.raises(UserError, match="loss=five"):
        load("probe", ["loss=five"], config_dir=user_conf)


def test_hydra_s_internals_are_where_we_look_for_them(tmp_path):
    """If this fails after an update of hydra, `compose.start_hydra` is the one function to mend."""
    import inspect

    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path

    parameters = inspect.signature(Hydra.create_main_hydra2).parameters
    assert {"task_name", "config_search_path"} <= set(parameters)
    search_path = create_config_search_path(str(tmp_path))
    search_path.prepend(provider="user", path=f"file://{tmp_path}")
    assert search_path.get_path()[0].provider == "user"


def test_config_dir_must_exist(tmp_path):
    assert "no such folder" in refusal("probe", config_dir=tmp_path / "none")


def test_what_memorize_asks_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "facts.jsonl").write_text('{"question": "Who?", "answer": "Ilse"}\n')
    (tmp_path / "a note.txt").write_text("A text.")

    asked = load_memorize(["facts.jsonl"], Limits())
    assert asked.run.data == JsonlData(path="facts.jsonl")
    assert asked.run.seqlen == ALL_TOKENS
    assert (asked.ranks, asked.seeds) == ([], [0, 1])
    assert asked.request.out == Path("outputs/memorize")

    # What is given wins over what facts are trained with by themselves.
    asked = load_memorize(["facts.jsonl", "rank=8,2", "seed=5", "train.lr=0.5"], Limits())
    assert (asked.ranks, asked.seeds, asked.run.train.lr) == ([2, 8], [5], 0.5)

    # The rate of AdamW is none for another optimiser.
    asked = load_memorize(["facts.jsonl", "train.optimizer=muon"], Limits())
    assert asked.run.train.peak_lr == 1

    # The limit of harm would move the loss under a line search.
    words = ["a note.txt", "loss=sft", "train.optimizer=lbfgs"]
    with pytest.raises(UserError, match="needs --max-forgetting none"):
        load_memorize(words, Limits())
    assert load_memorize(words, Limits(max_forgetting=None)).run.train.peak_lr == 1
    with pytest.raises(UserError, match=r"train\.lr=0\.1: train\.optimizer=lbfgs has none"):
        load_memorize([*words, "train.lr=0.1"], Limits(max_forgetting=None))

    asked = load_memorize(["a note.txt", "loss=sft"], Limits())
    assert asked.run.data.path == "a note.txt"
    assert asked.run.loss == SftLoss()
    assert load_memorize(["data=phonebook"], Limits()).run.data.source == "phonebook"


def test_limits_are_read_as_they_are_written():
    assert parsed_limits("99%", "none", "1h30min") == Limits(
        exact=0.99, max_forgetting=None, budget=5400
    )
    assert parsed_limits("100", "off", "") == Limits(exact=1.0, max_forgetting=None)
    # No forgetting at all, or no limit of it? Not to be guessed.
    for nats in ("0", "-1", "nan"):
        with pytest.raises(UserError, match=f"--max-forgetting {nats}: must be nats per token"):
            parsed_limits("100%", nats, "")
    for wrong in (("0.99", "0.1", ""), ("150%", "0.1", ""), ("100%", "0.1", "5")):
        with pytest.raises(UserError, match="must be"):
            parsed_limits(*wrong)


def test_a_rate_is_not_taken_over_by_another_optimiser(sweep_file):
    file = sweep_file("rank: [1, 2]\ntrain: {lr: 2e-2}\n")
    message = refusal("sweep", "train.optimizer=muon", file=file)
    assert "train.lr=0.02:" in message
    assert "chosen it for adamw" in message
    assert "train.optimizer=muon give train.lr too (null: its own)" in message

    def rates(*overrides):
        return {run.train.peak_lr for run in load("sweep", list(overrides), file).runs}

    assert rates() == rates("train.optimizer=adamw") == {0.02}
    assert rates("train.optimizer=muon", "train.lr=null") == {1}
    assert rates("train.optimizer=muon", "train.lr=0.5") == {0.5}
    file.write_text("train: {optimizer: muon, lr: 5e-1}\n")
    assert rates("train.optimizer=muon") == {0.5}


@pytest.mark.parametrize("setting", ["schedule=constant", "clip=5", "clip=0", "weight_decay=0.1"])
def test_lbfgs_refuses_what_it_would_not_obey(setting):
    assert f"train.{setting}: " in refusal("probe", "train.optimizer=lbfgs", f"train.{setting}")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("rank=9999999999999999999999999", "must be from 1 to 1,000,000"),
        ("train.decode=7", "train.decode=7: must be true or false"),
        ("train.decode=0.5", "train.decode=0.5: must be true or false"),
        ("out=", "out=: must be a folder"),
    ],
)
def test_numbers_and_texts_beyond_what_they_mean_are_refused(given, message):
    assert message in refusal("sweep", given)


def test_zero_and_one_are_false_and_true():
    decode = [run.train.decode for run in load("sweep", ["train.decode=0,1"]).runs]
    assert decode == [False, True]
