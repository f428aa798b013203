"""The command line: load what is asked for, call the verb, print. Heavy imports stay inside commands, so that help is quick.

What a user can mend becomes one line for each fault on stderr, and exit code 2.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pml_cli import __version__
from pml_cli.config.completion import (
    complete_fit,
    complete_lasting,
    complete_override,
    complete_sweep_file,
    complete_transition,
)
from pml_cli.errors import UserError
from pml_cli.launch.openmp import share_cores

GROUPS_HELP = """\b
OPTIONS OF THE GROUPS
  model=    tiny (default) smollm2_135m qwen3_0_6b qwen3_8b llama31_8b
            hf (any causal language model: model=hf model.path=...)
  data=     random (default) mixed text phonebook rule jsonl hf
  adapter=  mlp_block (default) linear
  loss=     sft (default) memft_ot memft_sw memft_sw_axolotl memft_margin
            memft_margin_facts
  train=    default paper_long_context
  launch=   inline (default) local (every device of this machine) slurm

\b
Short keys: rank seqlen seed out. Any other setting: group.name=value, such as
train.steps=2000. --print-config shows them all.
"""

VALUES_HELP = """\b
SEVERAL VALUES
  rank=4,8,16   rank='range(1,9)'   loss='glob(*)'   model=tiny,smollm2_135m
"""

app = typer.Typer(
    name="pml",
    help="""Measure how much a LoRA adapter remembers.

\b
START HERE
  pml probe rank=8 seqlen=128           train one adapter, see what it recalls
  pml sweep rank=4,8,16 seqlen=64,256   every combination, resumable
  pml fit outputs/                      the law of those runs, with figures
  pml transition outputs/               where recall breaks, token by token
  pml predict outputs/ seqlen=500       which rank does it take?
  pml memft rank=4,8 seqlen=256         plain or threshold-guided training?
  pml lasting outputs/memft             does it survive rounding and merging?
  pml status outputs/sweep              what a sweep is doing, from any shell
  pml cancel outputs/sweep              end it; the same command goes on later
""",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Settings, in Hydra's grammar.", autocompletion=complete_override
    ),
]
FOLDERS_HELP = {
    "metavar": "PATH|KEY=VALUE",
    "help": "Folders of runs (default: outputs) and settings.",
}
FitArguments = Annotated[
    list[str] | None, typer.Argument(autocompletion=complete_fit, **FOLDERS_HELP)
]
LastingArguments = Annotated[
    list[str] | None, typer.Argument(autocompletion=complete_lasting, **FOLDERS_HELP)
]
TransitionArguments = Annotated[
    list[str] | None, typer.Argument(autocompletion=complete_transition, **FOLDERS_HELP)
]
ConfigDir = Annotated[
    Path | None,
    typer.Option(
        "--config-dir",
        metavar="DIR",
        help="Your own options, laid out like conf/; they come first.",
    ),
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print the resolved settings and stop.")
]
SweepFile = Annotated[
    Path | None,
    typer.Option(
        "--file",
        "-f",
        metavar="FILE",
        help="A sweep file, or the name of a shipped one.",
        autocompletion=complete_sweep_file,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check every cell, list the packs; run nothing.")
]
FailFast = Annotated[
    bool, typer.Option("--fail-fast", help="When a cell fails, keep checkpoints and stop.")
]
Retry = Annotated[
    bool,
    typer.Option(
        "--retry/--no-retry", help="Train again what failed before (default) or leave it."
    ),
]
Wait = Annotated[
    bool | None,
    typer.Option(
        "--wait/--no-wait",
        show_default=False,
        help="Stay until every cell has ended, also those of other processes (default, but not with launch=slurm).",
    ),
]
SweepFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A sweep's results folder.")]


@app.callback(invoke_without_command=True)
def start(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        typer.echo(f"pml {__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


@app.command(
    epilog=GROUPS_HELP,
    help="""Train one adapter on one sequence and say what it recalls.

\b
EXAMPLES
  pml probe
  pml probe rank=8 seqlen=256
  pml probe data=text data.path=notes.txt rank=16 seqlen=500
  pml probe model=smollm2_135m data=phonebook loss=memft_ot
  pml probe model=hf model.path=Qwen/Qwen3-1.7B train.steps=1000
  pml probe data=mixed data.random_share=0.2 --print-config
""",
)
def probe(
    overrides: Overrides = None, *, config_dir: ConfigDir = None, print_config: PrintConfig = False
) -> None:
    _run("probe", overrides, None, config_dir, print_config=print_config)


@app.command(
    epilog=VALUES_HELP + "\n" + GROUPS_HELP,
    help="""Train every combination of what is given several values.

The same command again runs only what is missing or failed, and goes on where
a killed one was. One failed cell does not end the sweep; the exit code is
then 1. Several sweeps in one folder share the work.

\b
EXAMPLES
  pml sweep rank=4,8,16 seqlen=128,512
  pml sweep 'rank=range(1,9)' seqlen=128 seed=0,1,2 --dry-run
  pml sweep data=mixed data.random_share=0,0.4,1 out=outputs/shares
  pml sweep -f law
  pml sweep -f sweeps/law.yaml model=smollm2_135m out=outputs/law_smol
  pml sweep rank=4,8 adapter=linear 'adapter.targets=[q_proj,v_proj]'
  pml sweep -f law launch=local
  pml sweep -f law launch=slurm launch.partition=gpu launch.devices=8
""",
)
def sweep(
    overrides: Overrides = None,
    *,
    file: SweepFile = None,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
    fail_fast: FailFast = False,
    wait: Wait = None,
    retry: Retry = True,
) -> None:
    flags = {"dry_run": dry_run, "fail_fast": fail_fast, "wait": wait, "retry": retry}
    _run("sweep", overrides, file, config_dir, print_config=print_config, **flags)


@app.command(
    epilog=VALUES_HELP + "\n" + GROUPS_HELP,
    help="""Compare plain with threshold-guided fine-tuning.

All train the same cells with an equal budget, compared pair by pair. Without
a loss of your own: loss=sft,memft_ot,memft_sw,memft_margin. With several
train.lr also each method at its own best one.

\b
EXAMPLES
  pml memft rank=4,8 seqlen=256
  pml memft data=phonebook rank=1,2,4,8 seqlen=1000 seed=0,1,2
  pml memft rank=8 seqlen=64 data.seed=0,1,2 train.lr=0.01,0.02,0.04
  pml memft rank=8 seqlen=500 loss=sft,memft_ot loss.threshold=0.5,0.69
  pml memft -f memft --dry-run
""",
)
def memft(
    overrides: Overrides = None,
    *,
    file: SweepFile = None,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
    fail_fast: FailFast = False,
    wait: Wait = None,
    retry: Retry = True,
) -> None:
    flags = {"dry_run": dry_run, "fail_fast": fail_fast, "wait": wait, "retry": retry}
    _run("memft", overrides, file, config_dir, print_config=print_config, **flags)


@app.command(
    help="""Fit the memory law to finished runs.

Shows exponents, their uncertainty and held-out error; draws figures. What
contains "=" is a setting, the rest are folders of runs.

\b
EXAMPLES
  pml fit
  pml fit outputs/law
  pml fit outputs/law outputs/shares out=report
  pml fit outputs/law saturated_below=0.5 figures=false

\b
SETTINGS
  saturated_below=0.69  cells with a final loss up to this are left out
  draws=4000            of the bootstrap behind the intervals; 0 for none
  out=                  folder of the report (default: fit/ in the first path)
  figures=true          draw figures
  x=rank                or parameters: the size that the law is about

\b
--by SETTING,...  compares the groups that differ in these settings alone
  (model data adapter loss layer setting lr steps): do they share alpha, beta?
""",
)
def fit(
    overrides: FitArguments = None,
    *,
    by: Annotated[
        str, typer.Option("--by", metavar="SETTING,...", help="Compare groups of cells.")
    ] = "",
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
) -> None:
    by_words = [word for word in by.split(",") if word]
    _report("fit", overrides, config_dir, print_config=print_config, by=by_words)


@app.command(
    help="""Report the phase transition of finished runs, token by token.

Does p > 0.5 suffice for recall, which tokens stay below it and for how long,
where does recall break? Reads the tokens logged in training, trains nothing.

\b
EXAMPLES
  pml transition
  pml transition outputs/transition
  pml transition outputs/law rank=4,8 seqlen=128 out=report
  pml transition outputs/scan text=1 figures=false

\b
SETTINGS
  rank= seqlen=   only runs of these ranks and lengths
  text=           data.seed of the text whose stubborn grid is drawn
  draws=2000      of the bootstrap behind the intervals of rho; 0 for none
  out=            folder of the report (default: PATH/transition)
  figures=true    draw figures
""",
)
def transition(
    overrides: TransitionArguments = None,
    *,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
) -> None:
    _report("transition", overrides, config_dir, print_config=print_config)


@app.command(
    help="""Ask a fitted law about adapters that were not trained.

Reads the report of `pml fit` (law.json), trains and fits nothing. Lengths alone:
the least rank; ranks alone: the longest length; both: gain, loss, chance of
exact recall. With 95 % bands, and a word where it extrapolates.

\b
EXAMPLES
  pml predict outputs/law seqlen=200,400
  pml predict outputs/law rank=8
  pml predict outputs/law rank=8 seqlen=100 --json
  pml predict outputs/law seqlen=300 --target loss=0.5
  pml predict outputs/law rank=4 --target bits=2000

\b
SETTINGS
  rank= seqlen=   what is asked; several values: rank=4,8
  group=          one group of the report (its name or slug); default: all
  base=           loss of the base model (nats/token) on your text, which makes
                  bands narrower; default: as on the texts trained
""",
)
def predict(
    overrides: FitArguments = None,
    *,
    target: Annotated[
        str,
        typer.Option(
            "--target", metavar="TARGET", help="verbatim (default), loss=NATS or bits=BITS."
        ),
    ] = "verbatim",
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
) -> None:
    _report(
        "predict", overrides, config_dir, print_config=print_config, target=target, as_json=as_json
    )


@app.command(
    help="""Does it survive rounding and merging, and what else did it damage?

Takes finished runs. Recall as trained; with adapter or base rounded to bf16
and int8; all in bf16; merged. Loss and KL to the base on text that was not
trained on, and on random tokens. What is measured already is kept.

\b
EXAMPLES
  pml lasting outputs/memft
  pml lasting outputs/memft outputs/sweep out=report
  pml lasting outputs/memft text=notes.txt tokens=5000
  pml lasting outputs/memft --json | jq .groups

\b
SETTINGS
  text=         UTF-8 file on which damage is measured (default: documentation
                of Python that the embedded model was not trained on)
  tokens=2000   of that text, and of random tokens; 0: no damage is measured
  decode=true   in bf16 also decode freely from the prompt
  device=auto   or cpu, cuda
  out=          folder of lasting.csv, .json, .png (default: the first path)
  figures=true  draw the figure
""",
)
def lasting(
    overrides: LastingArguments = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="All of it, for scripts.")] = False,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
) -> None:
    _report("lasting", overrides, config_dir, print_config=print_config, as_json=as_json)


@app.command(
    help="""Show what a sweep is doing: done, running, queued, failed.

Read off its folder and Slurm's queue: works from any shell or login node.
Exit code 1 when a cell has failed.

\b
EXAMPLES
  pml status
  pml status outputs/law --watch
  pml status outputs/law --json | jq .queued
""",
)
def status(
    folder: SweepFolder = Path("outputs/sweep"),
    *,
    as_json: Annotated[bool, typer.Option("--json", help="All of it, for scripts.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on until nothing runs or waits any more.")
    ] = False,
) -> None:
    from rich.console import Console

    from pml_cli.launch import status as verb

    raise typer.Exit(verb.run(folder, Console(markup=False), as_json=as_json, watch=watch))


@app.command(
    help="""Stop what works on a sweep's folder, and nothing else.

Running processes keep a checkpoint and end; jobs leave Slurm's queue. The same
sweep command goes on from there.

\b
EXAMPLES
  pml cancel outputs/law
""",
)
def cancel(folder: SweepFolder = Path("outputs/sweep")) -> None:
    from rich.console import Console

    from pml_cli.launch import status as verb

    raise typer.Exit(verb.cancel(folder, Console(markup=False)))


def _run(
    verb: str,
    overrides: list[str] | None,
    file: Path | None,
    config_dir: Path | None,
    *,
    print_config: bool,
    **flags: bool | None,
) -> None:
    from pml_cli.config.compose import describe, load

    request = load(verb, overrides or [], file, config_dir)
    if print_config:
        typer.echo(describe(request), nl=False)
        return
    from rich.console import Console

    module = importlib.import_module(f"pml_cli.commands.{verb}")
    raise typer.Exit(module.run(request, Console(markup=False), **flags))


def _report(
    verb: str,
    words: list[str] | None,
    config_dir: Path | None,
    *,
    print_config: bool,
    **options: Any,
) -> None:
    """A verb that reads finished runs: what contains "=" is a setting, the rest are folders."""
    from pml_cli.config.compose import describe, load_report

    settings = load_report(verb, [word for word in words or [] if "=" in word], config_dir)
    if print_config:
        typer.echo(describe(settings), nl=False)
        return
    from rich.console import Console

    module = importlib.import_module(f"pml_cli.commands.{verb}")
    paths = [Path(word) for word in words or [] if "=" not in word] or [Path("outputs")]
    raise typer.Exit(module.run(paths, settings, Console(markup=False), **options))


def main(args: list[str] | None = None) -> None:
    """Entry point: runs the command and exits with its code (2: bad input, 130: interrupted)."""
    share_cores()
    try:
        code = app(args, prog_name="pml", standalone_mode=False)
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        # Typer's own complaints (unknown option or command) share no public class over its versions.
        if not hasattr(error, "format_message"):
            raise
        _fail(error.format_message())
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> None:
    for line in message.splitlines():
        typer.echo(f"error: {line}", err=True)
    sys.exit(2)
