"""The command line: parse and check the settings, run the command, set the exit code.

A `UserError` becomes one line on stderr for each fault, and exit code 2. Heavy imports stay
inside functions, so that help is quick; what the help says of options and settings comes from their
declarations.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pml_cli import __version__
from pml_cli.config import reports
from pml_cli.config.cache_key import forget_files
from pml_cli.config.completion import (
    complete_measure,
    complete_memorize,
    complete_override,
    complete_settings,
    complete_sweep_file,
    report_completer,
)
from pml_cli.config.help import groups_help, settings_help
from pml_cli.errors import UserError, WorkersError, cut_line, first_line, printable, shortened
from pml_cli.io import refused_path
from pml_cli.launch.openmp import share_cores
from pml_cli.streams import forget_no_size, guarded_streams, lost_output

if TYPE_CHECKING:
    from rich.console import Console

GROUPS_HELP = groups_help()

VALUES_HELP = """\b
SEVERAL VALUES
  rank=4,8,16   rank='range(1,9)'   loss='glob(*)'   model=tiny,smollm2_135m
"""

BY_HELP = """\b
--by SETTING,...  compares the groups that differ in these settings alone
  (model data adapter loss layer setting lr steps): do they share alpha, beta?
"""

app = typer.Typer(
    name="pml",
    help="""Measure how much a LoRA adapter remembers.

\b
START HERE
  pml memorize facts.jsonl              the smallest adapter that knows them all
  pml probe rank=8 seqlen=128           train one adapter, see what it recalls
  pml sweep rank=4,8,16 seqlen=64,256   every combination, resumable
  pml fit outputs/                      the law of those runs, with figures
  pml transition outputs/               where recall breaks, token by token
  pml report outputs/                   all of it as one page for the browser
  pml predict outputs/ seqlen=500       which rank does it take?
  pml memft rank=4,8 seqlen=256         plain or threshold-guided training?
  pml capacity rank=1,2,4               how much does it hold exactly?
  pml lasting outputs/memft             does it survive rounding and merging?
  pml forgetting outputs/memft          what has it made the model forget?
  pml measure ADAPTER notes.txt         what any LoRA adapter holds of a text
  pml ask outputs/probe "Which pump?"   what does the adapter answer?
  pml status outputs/sweep              what a sweep is doing, from any shell
  pml cancel outputs/sweep              stop it; the same command resumes it
  pml track outputs/law --to wandb      its curves in W&B, TensorBoard, MLflow
  pml settings train.lr                 settings and their allowed values
""",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def complete_tracker(incomplete: str) -> list[str]:
    """Names of trackers, for shell completion."""
    from pml_cli.track.trackers import TRACKERS

    return [name for name in TRACKERS if name.startswith(incomplete)]


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Settings, in Hydra's grammar.", autocompletion=complete_override
    ),
]


def _folders_and_settings(settings: type[reports.ReportSettings]) -> Any:
    """The argument of a command that reads finished runs."""
    return typer.Argument(
        metavar="PATH|KEY=VALUE",
        help="Folders of runs (default: outputs) and settings.",
        autocompletion=report_completer(settings),
    )


FitArguments = Annotated[list[str] | None, _folders_and_settings(reports.Fit)]
PredictArguments = Annotated[list[str] | None, _folders_and_settings(reports.Predict)]
LastingArguments = Annotated[list[str] | None, _folders_and_settings(reports.Lasting)]
ForgettingArguments = Annotated[list[str] | None, _folders_and_settings(reports.Forgetting)]
AskArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN|QUESTION|KEY=VALUE",
        help="A run folder, questions (-: one per line of standard input, blank lines left out) "
        "and settings.",
        autocompletion=report_completer(reports.Ask),
    ),
]
MeasureArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="ADAPTER|TEXT|KEY=VALUE",
        help="An adapter's folder, a text or file of facts, and settings of model and data.",
        autocompletion=complete_measure,
    ),
]
MemorizeArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE|KEY=VALUE",
        help="A file of facts, or texts, and settings in Hydra's grammar.",
        autocompletion=complete_memorize,
    ),
]
ReportArguments = Annotated[list[str] | None, _folders_and_settings(reports.Report)]
TransitionArguments = Annotated[list[str] | None, _folders_and_settings(reports.Transition)]

ConfigDir = Annotated[
    Path | None,
    typer.Option(
        "--config-dir",
        metavar="DIR",
        help="Folder of your own options, laid out like conf/; they take precedence.",
    ),
]
PrintConfig = Annotated[
    bool,
    typer.Option(
        "--print-config", help="Print the resolved settings (YAML, with --json JSON) and stop."
    ),
]
SweepFile = Annotated[
    Path | None,
    typer.Option(
        "--file",
        "-f",
        metavar="FILE",
        help="A sweep file (docs/running.md), or the name of a shipped one.",
        autocompletion=complete_sweep_file,
    ),
]
Design = Annotated[
    Path | None,
    typer.Option(
        "--design",
        metavar="PATH",
        help="With --dry-run: report folder of a pilot fit; the cells are simulated from its law.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Check every cell and list the packs with their cost; train nothing."
    ),
]
FailFast = Annotated[
    bool, typer.Option("--fail-fast", help="Stop at the first failed cell; checkpoints are kept.")
]
Wait = Annotated[
    bool | None,
    typer.Option(
        "--wait/--no-wait",
        show_default=False,
        help="Wait until every cell has ended, including those of other processes (default, "
        "except with launch=slurm).",
    ),
]
Retry = Annotated[
    bool,
    typer.Option(
        "--retry/--no-retry", help="Train cells that failed before again (default), or skip them."
    ),
]
CompareBy = Annotated[
    str,
    typer.Option(
        "--by",
        metavar="SETTING,...",
        help="Compare the groups of cells that differ in these settings.",
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show no progress, only the result and errors.")
]
ShowAll = Annotated[
    bool, typer.Option("--all", help="Print every law and every note, not only the summary.")
]
ShowCells = Annotated[
    bool, typer.Option("--all", help="Print the table of cells even if there are many.")
]
Target = Annotated[
    str,
    typer.Option("--target", metavar="TARGET", help="verbatim (default), loss=NATS or bits=BITS."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the full result as JSON, for scripts.")]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens",
        min=1,
        metavar="N",
        help="Stop an answer after N tokens (default: twice the longest target, at least 64; "
        "without a question, the length of the target).",
        show_default=False,
    ),
]
Resolution = Annotated[
    int,
    typer.Option(
        "--resolution",
        min=1,
        metavar="TOKENS",
        help="Stop when the longest recalled and the shortest failed length differ by at most "
        "this many tokens.",
    ),
]
Passes = Annotated[
    int | None,
    typer.Option(
        "--passes",
        min=1,
        metavar="N",
        help="Maximum number of forward-backward passes per text grown (default: no limit).",
        show_default=False,
    ),
]
WithBase = Annotated[bool, typer.Option("--base", help="Also ask the model without the adapter.")]
WithHarm = Annotated[
    bool, typer.Option("--harm/--no-harm", help="Also measure the loss on other text (default).")
]
Exact = Annotated[
    str,
    typer.Option("--exact", metavar="SHARE", help="Facts that must be recalled exactly, per cent."),
]
MaxForgetting = Annotated[
    str,
    typer.Option(
        "--max-forgetting",
        metavar="NATS",
        help="Largest allowed rise of the loss on other text, in nats per token; none: no limit.",
    ),
]
EXACT = "100%"
MAX_FORGETTING = "0.1"
Budget = Annotated[
    str,
    typer.Option(
        "--budget",
        metavar="TIME",
        help="Stop training after this time (90s, 30min, 2h) and return the best adapter so far "
        "(default: no limit).",
        show_default=False,
    ),
]
Watch = Annotated[bool, typer.Option("--watch", help="Repeat until no cell is running or queued.")]
SweepFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A sweep's results folder.")]
RunsFolder = Annotated[Path, typer.Argument(metavar="PATH", help="A folder of runs.")]
TrackerName = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="TRACKER",
        help="tensorboard, wandb, mlflow or trackio.",
        autocompletion=complete_tracker,
    ),
]
TrackerProject = Annotated[
    str | None,
    typer.Option(
        "--project",
        metavar="NAME",
        help="Project or experiment of the tracker (default: the name of the folder).",
        show_default=False,
    ),
]
TrackerOut = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Folder for the tracker's files (default: tracker/TRACKER inside PATH).",
        show_default=False,
    ),
]
Follow = Annotated[
    bool, typer.Option("--follow", help="Keep mirroring until no cell is running or queued.")
]
Every = Annotated[
    float | None,
    typer.Option(
        "--every",
        min=1,
        # A day; what no clock holds would end the command.
        max=86_400,
        metavar="SECONDS",
        help="Seconds between two checks of --follow (default: 30).",
        show_default=False,
    ),
]
SettingsGroup = Annotated[
    str,
    typer.Argument(
        metavar="WHAT",
        help="GROUP, GROUP=OPTION, a command or a key; without it, everything is listed.",
        show_default=False,
        autocompletion=complete_settings,
    ),
]
DEFAULT_SWEEP_FOLDER = Path("outputs/sweep")


@app.callback(invoke_without_command=True)
def start(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    # No docstring: Typer would print it in place of the help above.
    if version:
        typer.echo(f"pml {__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


@app.command(
    epilog=groups_help("memorize"),
    help="""Find the smallest adapter that knows a file and harms nothing else.

FILE: facts (JSON lines, JSON, CSV, parquet) or texts. Tries ranks in packs,
with two seeds, in up to three rounds; run the same command again to resume.
OUT (outputs/memorize) gets adapter/ with a script, facts.csv, memorize.json
and memorize.png. Exit code 1: no rank keeps the limits; the best is kept.

\b
EXAMPLES
  pml memorize facts.jsonl model=hf model.path=Qwen/Qwen3-1.7B
  pml memorize facts.csv --exact 99% --max-forgetting 0.05 --budget 30min
  pml memorize notes.txt rank=2,4,8 out=outputs/notes
  pml memorize facts.jsonl --dry-run
  pml memorize data=phonebook seqlen=300 --max-forgetting none
""",
)
def memorize(
    overrides: MemorizeArguments = None,
    *,
    exact: Exact = EXACT,
    max_forgetting: MaxForgetting = MAX_FORGETTING,
    budget: Budget = "",
    dry_run: DryRun = False,
    as_json: AsJson = False,
    retry: Retry = True,
    quiet: Quiet = False,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
) -> None:
    from pml_cli.config.memorize import command_line, parsed_limits
    from pml_cli.config.request import load_memorize

    limits = parsed_limits(exact, max_forgetting, budget)
    typed = command_line(
        overrides or [],
        exact="" if exact == EXACT else exact,
        max_forgetting="" if max_forgetting == MAX_FORGETTING else max_forgetting,
        budget=budget,
    )
    asked = load_memorize(overrides or [], limits, config_dir, command=typed)
    from pml_cli.commands import memorize as command

    if print_config:
        _print_config(command.as_trained(asked), as_json=as_json)
        return

    flags = {"dry_run": dry_run, "as_json": as_json, "retry": retry, "quiet": quiet}
    raise typer.Exit(command.run(asked, _console(), **flags))


@app.command(
    epilog=GROUPS_HELP,
    help="""Train one adapter on one sequence and say what it recalls.

\b
EXAMPLES
  pml probe
  pml probe rank=8 seqlen=256
  pml probe data=text data.path=notes.txt rank=16 seqlen=500
  pml probe data=jsonl data.path=facts.csv seqlen=all
  pml probe model=smollm2_135m data=phonebook loss=memft_ot
  pml probe model=hf model.path=Qwen/Qwen3-1.7B train.steps=1000
  pml probe data=mixed data.random_share=0.2 --print-config
  pml probe rank=4 --json
""",
)
def probe(
    overrides: Overrides = None,
    *,
    as_json: AsJson = False,
    quiet: Quiet = False,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
) -> None:
    flags = {"as_json": as_json, "quiet": quiet}
    _train("probe", overrides, None, config_dir, print_config=print_config, **flags)


# Decorators apply from the bottom: `sweep` comes first in the list of commands.
@app.command(
    "memft",
    epilog=f"{VALUES_HELP}\n{GROUPS_HELP}",
    help="""Compare plain with threshold-guided fine-tuning.

All losses train the same cells with an equal budget and are compared pair by
pair. Default: loss=sft,memft_ot,memft_sw,memft_margin. With several values of
train.lr, each loss is also compared at its own best learning rate.

\b
EXAMPLES
  pml memft rank=4,8 seqlen=256
  pml memft data=phonebook rank=1,2,4,8 seqlen=1000 seed=0,1,2
  pml memft rank=8 seqlen=64 data.seed=0,1,2 train.lr=0.01,0.02,0.04
  pml memft rank=8 seqlen=500 loss=sft,memft_ot loss.threshold=0.5,0.69
  pml memft -f memft --dry-run
""",
)
@app.command(
    "sweep",
    epilog=f"{VALUES_HELP}\n{GROUPS_HELP}",
    help="""Train one cell for every combination of the listed values.

Run the same command again to train what is missing or failed; interrupted
cells resume from their checkpoint. A failed cell does not end the sweep; the
exit code is then 1, as after pml cancel. Several sweeps in one folder share
the work. OUT/results.csv has one row per cell; with more than 20 cells, only
--all prints the table.

\b
EXAMPLES
  pml sweep rank=4,8,16 seqlen=128,512
  pml sweep 'rank=range(1,9)' seqlen=128 seed=0,1,2 --dry-run
  pml sweep data=mixed data.random_share=0,0.4,1 out=outputs/shares
  pml sweep data=jsonl data.path=facts.jsonl data.samples=10,100 rank=2,4,8
  pml sweep -f law
  pml sweep -f sweeps/law.yaml model=smollm2_135m out=outputs/law_smol
  pml sweep rank=4,8 adapter=linear 'adapter.targets=[q_proj,v_proj]'
  pml sweep -f law data.seed=0,1,2 --dry-run --design outputs/pilot
  pml sweep -f law --json | jq .failed
  pml sweep -f law launch=local
  pml sweep -f law launch=slurm launch.partition=gpu launch.devices=8
""",
)
def train_many(
    ctx: typer.Context,
    overrides: Overrides = None,
    *,
    file: SweepFile = None,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
    design: Design = None,
    fail_fast: FailFast = False,
    wait: Wait = None,
    retry: Retry = True,
    show_all: ShowCells = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    flags: dict[str, Any] = {
        "dry_run": dry_run,
        "fail_fast": fail_fast,
        "wait": wait,
        "retry": retry,
        "show_all": show_all,
        "as_json": as_json,
        "quiet": quiet,
    }
    name = str(ctx.command.name)
    # Only a sweep plans a grid for the law.
    if name == "sweep":
        flags["design"] = design
    elif design is not None:
        raise UserError(f"--design {design}: only pml sweep has this option, not pml {name}")
    _train(name, overrides, file, config_dir, print_config=print_config, **flags)


@app.command(
    epilog=f"{VALUES_HELP}\n{GROUPS_HELP}",
    help="""Find how much of a text one adapter recalls exactly.

The text grows from the last solution until train.steps passes no longer
suffice for one more token: one adapter per rank instead of a grid of lengths.
seqlen, a number, is the starting length. Run the same command again to resume.

\b
EXAMPLES
  pml capacity rank=1,2,4
  pml capacity rank=1,2,4 data.seed=0,1,2 loss=sft,memft_margin
  pml capacity data=text rank=8 train.steps=400 --resolution 4
  pml capacity rank=2 model=smollm2_135m seqlen=32 --passes 2000 --json
""",
)
def capacity(
    overrides: Overrides = None,
    *,
    resolution: Resolution = 1,
    passes: Passes = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
) -> None:
    from pml_cli.config.request import load_capacity

    asked = load_capacity(overrides or [], config_dir, resolution=resolution, passes=passes)
    if print_config:
        _print_config(asked.request, as_json=as_json)
        return

    from pml_cli.commands import capacity as command

    flags = {"as_json": as_json, "dry_run": dry_run, "quiet": quiet}
    raise typer.Exit(command.run(asked, _console(), **flags))


@app.command(
    epilog=f"{settings_help(reports.Fit)}\n\n{BY_HELP}",
    help="""Fit the memory law to finished runs.

Prints the law, its intervals, its error on held-out cells and what to run
next; --all prints every law. Draws figures. Arguments with "=" are settings,
all others are folders of runs.

\b
EXAMPLES
  pml fit
  pml fit outputs/law
  pml fit outputs/law --all
  pml fit outputs/law outputs/shares out=report
  pml fit outputs/law saturated_below=0.5 figures=false
  pml fit outputs/law --json | jq .groups
""",
)
def fit(
    overrides: FitArguments = None,
    *,
    by: CompareBy = "",
    show_all: ShowAll = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
) -> None:
    # A trailing comma names no setting.
    settings = [name for name in by.split(",") if name]
    options = {"by": settings, "show_all": show_all, "as_json": as_json, "quiet": quiet}
    _report("fit", overrides, config_dir, print_config=print_config, **options)


@app.command(
    epilog=settings_help(reports.Report),
    help="""Write one HTML page about finished runs.

It shows the law with its bands and as a surface, the rank that a text needs,
what is recalled, every token while it is learned, losses, forgetting, and what
was left out and why. The file needs no network; open it in any browser.

\b
EXAMPLES
  pml report outputs/quickstart
  pml report outputs/law outputs/shares out=shares.html
  pml report outputs/memft runs=30 draws=1000
  pml report outputs/law --json | jq .verdict
""",
)
def report(
    overrides: ReportArguments = None,
    *,
    as_json: AsJson = False,
    quiet: Quiet = False,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
) -> None:
    options = {"as_json": as_json, "quiet": quiet}
    _report("report", overrides, config_dir, print_config=print_config, **options)


@app.command(
    epilog=settings_help(reports.Transition),
    help="""Report the phase transition of finished runs, token by token.

Does p > 0.5 suffice for recall? Which tokens stay below it, and for how long?
Where does recall break? Reads the tokens logged in training; trains nothing.

\b
EXAMPLES
  pml transition
  pml transition outputs/transition
  pml transition outputs/law rank=4,8 seqlen=128 out=report
  pml transition outputs/scan text=1 figures=false
""",
)
def transition(
    overrides: TransitionArguments = None,
    *,
    as_json: AsJson = False,
    quiet: Quiet = False,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
) -> None:
    options = {"as_json": as_json, "quiet": quiet}
    _report("transition", overrides, config_dir, print_config=print_config, **options)


@app.command(
    epilog=settings_help(reports.Predict),
    help="""Ask a fitted law about adapters that were not trained.

Reads the report of `pml fit` (law.json); trains and fits nothing. Given
lengths: the smallest rank. Given ranks: the longest length. Given both: gain,
loss and probability of exact recall. All with 95 % bands, and a note where the
law extrapolates.

\b
EXAMPLES
  pml predict outputs/law seqlen=200,400
  pml predict outputs/law rank=8
  pml predict outputs/law rank=8 seqlen=100 --json
  pml predict outputs/facts facts=300
  pml predict outputs/bits per_rank=1152 seqlen=100 base=3.2
  pml predict outputs/law seqlen=300 --target loss=0.5
  pml predict outputs/law rank=4 --target bits=2000
""",
)
def predict(
    overrides: PredictArguments = None,
    *,
    target: Target = "verbatim",
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
) -> None:
    options = {"target": target, "as_json": as_json}
    _report("predict", overrides, config_dir, print_config=print_config, **options)


@app.command(
    epilog=settings_help(reports.Lasting),
    help="""Measure recall after rounding and merging, and forgetting.

Reads finished runs. Measures recall as trained; with the adapter rounded to
bf16, int8 and int4; with the base model rounded to bf16 and int8; all in bf16;
merged. Also loss and KL to the base model on text that was not trained on, and
on random tokens. Runs that were measured before are not measured again.

\b
EXAMPLES
  pml lasting outputs/memft
  pml lasting outputs/memft outputs/sweep out=report
  pml lasting outputs/memft text=notes.txt tokens=5000
  pml lasting outputs/memft --json | jq .groups
""",
)
def lasting(
    overrides: LastingArguments = None,
    *,
    as_json: AsJson = False,
    quiet: Quiet = False,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
) -> None:
    options = {"as_json": as_json, "quiet": quiet}
    _report("lasting", overrides, config_dir, print_config=print_config, **options)


@app.command(
    epilog=settings_help(reports.Forgetting),
    help="""Measure what adapters make the model forget.

Reads finished runs. On prose, documentation, code, dialogues and text sampled
from the model: rise of the loss, KL to the base model, and share of tokens
whose most likely token changes; plotted against recall. Runs that were measured
before are not measured again.

\b
EXAMPLES
  pml forgetting outputs/memft
  pml forgetting outputs/memft outputs/sweep out=report
  pml forgetting outputs/memft kinds=prose,chat text=notes.txt
  pml forgetting outputs/memft --json | jq .groups
""",
)
def forgetting(
    overrides: ForgettingArguments = None,
    *,
    as_json: AsJson = False,
    quiet: Quiet = False,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
) -> None:
    options = {"as_json": as_json, "quiet": quiet}
    _report("forgetting", overrides, config_dir, print_config=print_config, **options)


@app.command(
    help="""Measure what any LoRA adapter holds of a text; trains nothing.

ADAPTER: a folder written by PEFT, or a pml run. TEXT: a text, or facts (JSON
lines, JSON, CSV, parquet); for a pml run it defaults to what the run was
trained on. Reports bits, margins, exact and near-verbatim recall, probability
under sampling, and harm. The base model is the one that the adapter names.
Settings: those of model and data, seqlen (default: all), out (outputs/measure).

\b
EXAMPLES
  pml measure my-adapter notes.txt
  pml measure my-adapter facts.jsonl data.chat=true
  pml measure my-adapter notes.txt model=hf model.path=./base seqlen=500
  pml measure outputs/probe
  pml measure my-adapter notes.txt --no-harm --json
""",
)
def measure(
    overrides: MeasureArguments = None,
    *,
    harm: WithHarm = True,
    as_json: AsJson = False,
    quiet: Quiet = False,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
) -> None:
    from pml_cli.config.measure import load_measure

    asked = load_measure(overrides or [], config_dir)
    if print_config:
        _print_config(asked.request, as_json=as_json)
        return

    from pml_cli.commands import measure as command

    raise typer.Exit(command.run(asked, _console(), harm=harm, as_json=as_json, quiet=quiet))


@app.command(
    epilog=settings_help(reports.Ask),
    help="""Put questions to the adapter of a finished run.

Builds the prompt exactly as in training and decodes greedily up to the end
token. Prints the answer and p of each token. RUN is a run folder, its adapter/,
or a folder with one run. Without a question, running text is continued.

\b
EXAMPLES
  pml ask outputs/probe "Which pump is in hall 3?"
  pml ask outputs/probe "Which pump?" "Which hall?" --base
  pml ask outputs/probe --max-tokens 200
  pml ask outputs/probe - --json < questions.txt
""",
)
def ask(
    overrides: AskArguments = None,
    *,
    max_tokens: MaxTokens = None,
    base: WithBase = False,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
) -> None:
    from pml_cli.config.questions import split_arguments
    from pml_cli.config.request import load_report

    run, questions, keys = split_arguments(overrides or [], reports.Ask)
    settings = load_report("ask", keys, config_dir)
    if print_config:
        _print_config(settings, as_json=as_json)
        return

    from pml_cli.commands import ask as command

    assert isinstance(settings, reports.Ask)
    flags = command.Flags(max_tokens=max_tokens, base=base, as_json=as_json)
    raise typer.Exit(command.run(run, questions, settings, _console(), flags))


@app.command(
    help="""Show what a sweep is doing: done, running, queued, failed.

Reads its folder and Slurm's queue, so it works from any shell or login node.
Exit code 1 if a cell has failed.

\b
EXAMPLES
  pml status
  pml status outputs/law --watch
  pml status outputs/law --json | jq .queued
""",
)
def status(
    folder: SweepFolder = DEFAULT_SWEEP_FOLDER, *, as_json: AsJson = False, watch: Watch = False
) -> None:
    from pml_cli.commands import status as command

    raise typer.Exit(command.run(folder, _console(), as_json=as_json, watch=watch))


@app.command(
    help="""Stop all processes and jobs that train a sweep's cells.

Running processes write a checkpoint and end; jobs leave Slurm's queue. The same
sweep command resumes from there. Exit code 0, even if nothing is running.

\b
EXAMPLES
  pml cancel outputs/law
""",
)
def cancel(folder: SweepFolder = DEFAULT_SWEEP_FOLDER) -> None:
    from pml_cli.commands import status as command

    raise typer.Exit(command.cancel(folder, _console()))


@app.command(
    help="""Mirror finished runs into an experiment tracker, once each.

PATH: a results folder, searched at any depth. Settings, the curve of every
step and the results go to TensorBoard, W&B, MLflow or Trackio, from any
machine that sees the folder: training needs no tracker and no network.
Requires pip install pml-cli[track]; respects WANDB_MODE=offline,
MLFLOW_TRACKING_URI and TRACKIO_DIR.

\b
EXAMPLES
  pml track outputs/law --to tensorboard
  pml track outputs/law --to tensorboard --follow --every 10
  pml track outputs --to wandb --project memory
  pml track outputs/law --to mlflow --out ~/mlflow
  pml track outputs/law --to trackio --json | jq .points
""",
)
def track(
    path: RunsFolder,
    *,
    to: TrackerName,
    project: TrackerProject = None,
    out: TrackerOut = None,
    follow: Follow = False,
    every: Every = None,
    as_json: AsJson = False,
) -> None:
    from pml_cli.commands import track as command

    flags: dict[str, Any] = {"follow": follow, "every": every, "as_json": as_json}
    code = command.run(path, _console(), to=to, project=project, out=out, **flags)
    raise typer.Exit(code)


@app.command(
    "settings",
    help="""List every setting with its default, meaning and allowed values.

WHAT: a group (model data adapter loss train launch), one of its options, a
command (listed with its own defaults), one key, or run (the keys without a
group).

\b
EXAMPLES
  pml settings
  pml settings train
  pml settings train.lr
  pml settings data=jsonl
  pml settings memorize
  pml settings fit --json
""",
)
def list_settings(
    what: SettingsGroup = "", *, as_json: AsJson = False, config_dir: ConfigDir = None
) -> None:
    from pml_cli.commands import settings as command

    raise typer.Exit(command.run(what, _console(), config_dir, as_json=as_json))


def _console() -> Console:
    """Standard output; text is printed literally, without markup and emoji codes."""
    from rich.console import Console

    return Console(markup=False, emoji=False)


def _train(
    command: str,
    overrides: list[str] | None,
    file: Path | None,
    config_dir: Path | None,
    *,
    print_config: bool,
    **flags: Any,
) -> None:
    """A command that trains: every argument is a setting."""
    # Imported here, because hydra takes longer to import than the help to print.
    from pml_cli.config.request import load

    request = load(command, overrides or [], file, config_dir)
    if print_config:
        _print_config(request, as_json=flags["as_json"])
        return

    module = importlib.import_module(f"pml_cli.commands.{command}")
    raise typer.Exit(module.run(request, _console(), **flags))


def _report(
    command: str,
    arguments: list[str] | None,
    config_dir: Path | None,
    *,
    print_config: bool,
    **options: Any,
) -> None:
    """A command that reads finished runs: what contains "=" is a setting, the rest are folders."""
    from pml_cli.config.request import load_report

    overrides = [argument for argument in arguments or [] if "=" in argument]
    folders = [Path(argument) for argument in arguments or [] if "=" not in argument]
    settings = load_report(command, overrides, config_dir)
    if print_config:
        _print_config(settings, as_json=options["as_json"])
        return

    module = importlib.import_module(f"pml_cli.commands.{command}")
    console = _console()
    raise typer.Exit(module.run(folders or [Path("outputs")], settings, console, **options))


def _print_config(settings: Any, *, as_json: bool) -> None:
    """What `--print-config` shows; with --json that alone on standard output."""
    from pml_cli.config.dump import describe, swept_note, values_by_key
    from pml_cli.io import json_text, jsonable

    if not as_json:
        typer.echo(describe(settings), nl=False)
        return

    note = swept_note(settings)
    if note:
        typer.echo(note, err=True)
    typer.echo(json_text(jsonable(values_by_key(settings))), nl=False)


def main(args: list[str] | None = None) -> None:
    """Entry point: runs the command and exits with its code (2: bad input, 130: interrupted)."""
    # Before torch is imported: OpenMP reads its settings once.
    share_cores()
    # No figure is shown on a screen, so the user's choice of one, or a wrong name, does not count.
    # Not in a caller's process, such as a notebook's.
    if args is None:
        os.environ["MPLBACKEND"] = "Agg"
    forget_no_size()
    with guarded_streams():
        code = _run(args)
        lost = lost_output()
        if lost is not None:
            code = _refused([lost])

    # Python prints a traceback if Ctrl-C arrives during shutdown: restore the default handler.
    # Only when this process is ours, not when a caller passed the arguments.
    is_asked = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if args is None and is_asked:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(code)


def _run(args: list[str] | None) -> int:
    """Run the command; its exit code."""
    try:
        _check_present_folder()
        forget_files()
        code = app(args, prog_name="pml", standalone_mode=False)
    except UserError as error:
        return _refused(error.faults)
    except WorkersError as error:
        typer.echo(f"error: {cut_line(printable(str(error)))}", err=True)
        return 1
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        # What a file system refuses is no fault of the program, wherever it comes up.
        path = refused_path(error)
        if path is None:
            raise
        return _refused([f"{shortened(path)}: {error.strerror}"])
    except Exception as error:
        if _is_out_of_memory(error):
            return _refused([f"out of memory ({first_line(error)})"])
        # Typer's own complaints (unknown option or command) share no public class.
        if not hasattr(error, "format_message"):
            raise
        return _refused(error.format_message().splitlines())
    return code if isinstance(code, int) else 0


def _is_out_of_memory(error: Exception) -> bool:
    """Whether the memory of this machine or of a GPU has run out."""
    if isinstance(error, ImportError):
        # "failed to map segment" is how the dynamic loader says so.
        return "map segment" in str(error)
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from pml_cli.model.device import out_of_memory

    return out_of_memory(error)


def _check_present_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the current directory no longer exists; cd to another one") from None


def _refused(faults: list[str]) -> int:
    """Print what is wrong; the exit code."""
    for line in faults:
        typer.echo(f"error: {cut_line(printable(line))}", err=True)
    return 2
