"""Keys, values, options, commands, and places to write to that cannot be used."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from catalogue.case import Case
from catalogue.damage import Change, put

DOOR = "command line"
DRY = "--dry-run"
READERS = ("fit", "transition", "lasting", "forgetting")
FOLDER_COMMANDS = (*READERS, "status", "cancel", "measure", "ask")

# What Hydra's grammar reads and no rank is, and what it does not read.
RANKS = (
    """
0|-1|1.5|abc|null|true|nan|inf|''|[1,2]|{a:1}|0x10|1e3|range(1,1)|range(1,9,0)|range(1,1e9)|interval(1,8)|
glob(*)|choice()|range(a,b)|range(nan,3)|tag(x,1)|int(x)|float(nan)|extend_list(1)|nosuch(1,2)|
1,,2|,1|1,|'1|[1|((1))|1 2|
${seqlen}|${oc.env:HOME}|${nope}|${rank}|${oc.env:NO_SUCH}|$(whoami)|`id`|1;2|1&2|
{4,8}|!x|a=b|=4|\u2028|\u0663|4\n8|4\t,8x
""".replace("|\n", "|")
    .strip()
    .encode()
    .decode("unicode_escape")
    .split("|")
)

WORDS = (
    """
rank|=4|4| |+rank=4|++rank=4|~rank|~rank=4|rank@x=4|rank:x=4|rank.x=4|rnak=4|Rank=4|RANK=4|
r\u0430nk=4|
hydra.run.dir=/tmp/x|hydra/job_logging=none|hydra.sweep.dir=/tmp/x|hydra=x|
hydra.searchpath=[file:///tmp]|
_target_=os.system|model._target_=os.system|data._target_=builtins.eval|train._target_=os.system|defaults=[]|
model/tiny=x|data/text=1|model.tiny=x|train=nope|train.nope=1|train.stesp=5|steps=5|lr=0.1|model=nope|model=|
model=null|model=../sweep|model=/etc/passwd|model=tiny,nope|model=[tiny]|model={a:1}|data=nope|data=jsonl|data=hf|
data.path=x|data.source=text|adapter.kind=linear|adapter=nope|adapter.targets=[q_proj]|loss=nope|loss=glob(z*)|
loss.threshold=1|loss.kind=sft|launch=nope|launch=local,inline|launch.devices=2|launch.kind=local|out=a,b|
launch.pack_tokens=1,2|model=hf|train.lr=|train.lr=1e|out=|out=null|out=[a]|out={a:1}
""".replace("|\n", "|")
    .strip()
    .encode()
    .decode("unicode_escape")
    .split("|")
)

MODEL_NAMES = (
    *("../../x", "a/b", "", "a b", "a\\nb", "\u00e9", "-x", ".hidden", "..", "\x1b[31mred"),
    *("${oc.env:HOME}", "${model.name}", "${.name}", "${.nope}", "${oc.env:NO_SUCH_VARIABLE}"),
    *("${basename:}", "${basename:a,b}", "${nosuch:x}", "${", "a${rank}/..", "a" * 300, "=1+1"),
)

RANDOM_MODEL = (
    *("model.weights=random", "model.path=none", "model.name=x", "model.architecture.head_dim=8"),
    *("model.architecture.num_hidden_layers=2", "rank=1", "seqlen=8", "train.steps=2", "out=o"),
)
LONG = "a" * 5000
DEEP = {
    "lists": "[" * 1000 + "]" * 1000,
    "mappings": "{a:" * 500 + "1" + "}" * 500,
    "calls": "sort(" * 300 + "1" + ")" * 300,
}

# Wrong words of the commands that read, beside what `settings.py` makes.
REPORT_WORDS = {
    "fit": ("drwas=5", "rank=4", "draws=1,2", "x=foo", "--by nope", "--by model,nope", "--by seed"),
    "transition": ("rank=99", "seqlen=99", "text=99", "text=x", "text=1,2", "ranks=4"),
    "lasting": ("text=nowhere.txt", "text=/", "device=foo", "device=cuda", "tokens=" + "9" * 30),
    "forgetting": ("kinds=prse", "text=nowhere.txt", "text=/", "tokens=" + "9" * 30, "kinds=[]"),
}
PREDICT_WORDS = (
    *("", "rank=0", "rank=nan", "rank=abc", "seqlen=-1", "seqlen=inf", "seqlen=10 base=-1"),
    *("seqlen=10 base=nan", "seqlen=10 group=nope", "seqlen=10 --target foo", "seqlen=10 x=rank"),
    *("seqlen=10 --target loss=", "seqlen=10 --target loss=nan", "seqlen=10 --target loss=-1"),
    *("seqlen=10 --target bits=inf", "seqlen=10 rank=4 --target loss=1", "seqlen={a:1}"),
    *("seqlen=[]", "facts=-1", "facts=x", "seqlen=10 facts=10", "per_rank=0 seqlen=10"),
)
COMMANDS = {
    "no such command": ("swep",),
    "no such flag": ("sweep", "--dryrun"),
    "a flag without its value": ("sweep", "-f"),
    "no such sweep file": ("sweep", "-f", "nowhere.yaml"),
    "an empty name of a sweep file": ("sweep", "-f", "", DRY),
    "a folder for a sweep file": ("sweep", "-f", "/", DRY),
    "a device for a sweep file": ("sweep", "-f", "/dev/null", DRY),
    "a text for a sweep file": ("sweep", "-f", LONG, DRY),
    "no such folder of options": ("sweep", "--config-dir", "/nowhere", DRY),
    "a file for a folder of options": ("sweep", "--config-dir", "/dev/null", DRY),
    "a text for a folder of options": ("sweep", "--config-dir", LONG, DRY),
    "a probe waits": ("probe", "--wait"),
    "several values for a probe": ("probe", "rank=4,8"),
    "memft with one loss": ("memft", "loss=sft", DRY),
    "memft without sft": ("memft", "loss=memft_ot,memft_sw", DRY),
    "memft with an unknown loss": ("memft", "loss=sft,memtf_ot", DRY),
    "capacity of several lengths": ("capacity", "seqlen=8,16", DRY),
    "capacity of facts": ("capacity", "data=phonebook", DRY),
    "capacity of no resolution": ("capacity", "--resolution", "0", DRY),
    "capacity of a word": ("capacity", "--resolution", "x", DRY),
    "capacity of no passes": ("capacity", "--passes", "-1", DRY),
    "memorize nothing": ("memorize",),
    "memorize no such file": ("memorize", "nowhere.jsonl"),
    "memorize a folder": ("memorize", "/"),
    "memorize a device": ("memorize", "/dev/null"),
    "memorize a text for its path": ("memorize", LONG),
    "memorize of several models": ("memorize", "/etc/hostname", "model=tiny,qwen3_0_6b"),
    "memorize beyond all forgetting": ("memorize", "/etc/hostname", "--max-forgetting", "-1"),
    "memorize to a word": ("memorize", "/etc/hostname", "--max-forgetting", "x"),
    "measure nothing": ("measure",),
    "measure what is nowhere": ("measure", "nowhere", "/etc/hostname"),
    "ask nobody": ("ask",),
    "ask in the home of nobody": ("ask", "~nosuchuser/x", "q"),
    "memorize from the home of nobody": ("memorize", "~nosuchuser/x"),
    "measure in the home of nobody": ("measure", "~nosuchuser/x", "/etc/hostname"),
    "ask for no tokens": ("ask", "nowhere", "q", "--max-tokens", "0"),
    "track what is nowhere": ("track", "nowhere", "--to", "wandb"),
    "track into nothing": ("track", "/", "--to", "nope"),
    "settings of no group": ("settings", "trian"),
    "a misspelt key of the settings": ("settings", "train.lrr"),
    "settings of a command of flags": ("settings", "track"),
    "a value for a key of the settings": ("settings", "train.lr=0.1"),
    "settings of no option": ("settings", "loss=nope"),
    "status of two folders": ("status", "a", "b"),
    "status of a setting": ("status", "rank=4"),
    "cancel two folders": ("cancel", "a", "b"),
    "a key twice": ("sweep", "rank=4", "rank=8", DRY),
    "what bash makes of braces": ("sweep", "rank=4", "rank=8", "seqlen=8", "seqlen=16", DRY),
    "more cells than there may be": ("sweep", "rank=range(1,400)", "seqlen=range(1,400)", DRY),
    "a curriculum beyond the epochs": ("sweep", "train.curriculum=[5]", "train.epochs=3", DRY),
    "a curriculum beyond the steps": (
        *("sweep", "data=phonebook", "train.curriculum=[20,4000]", "train.steps=30", DRY),
    ),
    "steps beside epochs": ("sweep", "train.steps=100,200", "train.epochs=3", DRY),
    "tolerances of no convergence": ("sweep", "train.tolerance=0.5,0.1", DRY),
    "batches that hold all samples": ("sweep", "data=phonebook", "train.batch=0,100", DRY),
    "a list that refers to a text": ("sweep", "train.curriculum=${model.name}", DRY),
    "a design without a dry run": ("sweep", "--design", "nowhere"),
    "a design that is nowhere": ("sweep", "--design", "nowhere", DRY),
    "two models of one name": ("sweep", "model=hf", "model.path=a/x,b/x", DRY),
    "streaming of random weights": ("sweep", "model.stream=true", "model.weights=random", DRY),
    "a numbered GPU for workers": ("sweep", "launch=local", "model.device=cuda:0", DRY),
    "steps of 30 digits": ("sweep", "train.steps=" + "9" * 30, DRY),
    "a rank of 25 digits": ("sweep", "rank=" + "9" * 25, DRY),
    "a length of 5,000 digits": ("sweep", "seqlen=" + "9" * 5000, DRY),
    "a length beyond the context": ("sweep", "seqlen=999999999", DRY),
    "lengths both ways": ("sweep", "data=phonebook", "data.samples=3", "seqlen=8", DRY),
}
# Culprits of COMMANDS that are not the second word.
CULPRITS = {
    "memft without sft": "sft",
    "memorize nothing": "FILE",
    "ask nobody": "ask|RUN",
    "track into nothing": "nope",
}


def cases() -> Iterator[Case]:
    """All of them."""
    for text in RANKS:
        yield _sweep(f"rank={text!r}", f"rank={text}", "rank")

    for word in WORDS:
        yield _sweep(f"word {word!r}", word, _key(word))

    for name in MODEL_NAMES:
        yield _sweep(f"model.name={name[:40]!r}", f'model.name="{name}"', r"model[.:]")

    for key in ("data.prompt", "model.architecture", "rank", "launch.setup", "loss.keep"):
        for kind, text in DEEP.items():
            words = ("launch=slurm",) if key.startswith("launch") else ()
            argv = ("sweep", *words, f"{key}={text}", DRY)
            yield _case(f"{key} of {kind}, nested deep", argv, re.escape(key))

    for name, argv in COMMANDS.items():
        yield _case(name, argv, CULPRITS.get(name, ""))

    yield from _architectures()
    yield from _reports()
    yield from _folders()


def _architectures() -> Iterator[Case]:
    """Models of random weights that cannot be, or that nothing can be drawn for."""
    for entry in ("vocab_size:1", "_target_:os.system", "_attn:x", "hidden_size:0"):
        fields = "{" + f"model_type:llama,{entry}" + "}"
        argv = ("sweep", f"model.architecture={fields}", *RANDOM_MODEL)
        yield _case(f"model.architecture={fields}", argv, "model")


def _reports() -> Iterator[Case]:
    for command, lines in REPORT_WORDS.items():
        base = "planted" if command in ("fit", "transition") else "swept"
        for line in lines:
            argv = (command, "runs", *line.split(" "))
            yield _case(f"{command} {line[:20]}", argv, _key(line), base=base)
    for line in PREDICT_WORDS:
        argv = ("predict", "runs", *line.split())
        yield _case(f"predict {line}", argv, "", base="law")


def _folders() -> Iterator[Case]:
    """Folders to read, and to write to, that cannot be used."""
    for command in FOLDER_COMMANDS:
        more = ("/etc/hostname",) if command == "measure" else ()
        more = ("question",) if command == "ask" else more
        for kind, (name, change) in PLACES.items():
            yield _case(f"{command} {kind}", (command, name, *more), "", change=change)

    for kind, (name, change) in PLACES.items():
        if kind in ("an empty folder", "nowhere"):
            continue
        argv = ("sweep", f"out={name}", "rank=1", "seqlen=8", "train.steps=2")
        yield _case(f"sweep into {kind}", argv, f"out|{name[:9]}", change=change)
        argv = ("sweep", "--config-dir", name, "rank=1", DRY)
        yield _case(f"--config-dir is {kind}", argv, "config-dir", change=change)
        for command in ("fit", "transition"):
            argv = (command, "runs", f"out={name}", "draws=0", "figures=false")
            argv = tuple(word for word in argv if command == "fit" or word != "draws=0")
            yield _case(f"{command} into {kind}", argv, "", base="planted", change=change)


def _link(target: str) -> Change:
    return lambda folder: (folder / "link").symlink_to(target)


def _empty(folder: Path) -> None:
    (folder / "empty").mkdir()


PLACES: dict[str, tuple[str, Change | None]] = {
    "nowhere": ("nowhere", None),
    "a file": ("file", put("file", "x")),
    "below a file": ("file/below", put("file", "x")),
    "an empty folder": ("empty", _empty),
    "a device": ("/dev/null", None),
    "/proc": ("/proc/x", None),
    "a broken link": ("link", _link("/nowhere/x")),
    "below a broken link": ("link/below", _link("/nowhere/x")),
    "a link to itself": ("link", _link("link")),
    "5,000 letters": (LONG, None),
    "300 letters": ("a" * 300, None),
}


def _key(word: str) -> str:
    """What a message about a word has to name."""
    name = re.split(r"[=@:/ ]", word.removeprefix("--"))[0].lstrip("+~")
    return re.escape(name) or "key=value"


def _sweep(name: str, word: str, says: str) -> Case:
    return _case(name, ("sweep", word, DRY), says)


def _case(
    name: str, argv: tuple[str, ...], says: str, *, base: str = "", change: Change | None = None
) -> Case:
    return Case(door=DOOR, name=name, argv=argv, says=says, base=base, change=change)
