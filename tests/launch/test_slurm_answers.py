"""What is made of a Slurm that fails, hangs or talks nonsense: fake commands in PATH.

What a real one does is in tests/cluster.
"""

import os
import subprocess

import pytest

from pml_cli.config.schema import Model, Run
from pml_cli.errors import UserError
from pml_cli.launch import slurm, worker
from pml_cli.launch.executors.base import SweepJob
from pml_cli.launch.executors.slurm import SlurmLaunch
from pml_cli.launch.manifest import SweepManifest
from pml_cli.launch.packing import Packing, check, make_packs

FAILS = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"
HANGS = "exec sleep 60"
NONSENSE = r"printf '\377\376 |\n|||||\n12_[3-\n'"
NOTHING = ":"
ANSWERS = [FAILS, HANGS, NONSENSE, NOTHING]
NAMES = ["fails", "hangs", "nonsense", "nothing"]


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """fake(squeue=..., scancel=...): commands of Slurm that are such shell scripts."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "ANSWER_SECONDS", 0.3)

    def lay(**scripts):
        for name, script in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)

    return lay


@pytest.fixture
def requested(tmp_path):
    """runs/: a sweep that was requested, and submitted as job 12."""
    out = tmp_path / "runs"
    cells = check([Run(rank=1, seqlen=8, model=Model(device="cpu"))])
    packs = make_packs(cells, Packing())
    manifest = SweepManifest.write(out, packs, Packing())
    slurm.record_launch(out / ".pml" / "jobs" / "12.json", "abcd1234", manifest.key)
    return SweepJob(out=out, manifest=manifest, packs=packs, fail_fast=False)


@pytest.mark.parametrize("script", ANSWERS, ids=NAMES)
@pytest.mark.parametrize("verb", ["status", "cancel"])
def test_a_queue_that_gives_no_answer(fake, requested, quick, verb, script):
    fake(squeue=script, scancel=script)
    done = quick(verb, "runs")
    assert "Traceback" not in done.stderr
    is_silent = script in (FAILS, HANGS)
    assert done.returncode == (2 if verb == "cancel" and is_silent else 0), done.stderr
    if done.returncode:
        assert done.stderr.startswith("error: runs: squeue does not answer; ")
    if verb == "cancel":
        # Whoever starts later ends too.
        assert (requested.out / ".pml" / "cancel" / "abcd1234").exists()


@pytest.mark.parametrize("script", [FAILS, HANGS], ids=NAMES[:2])
def test_jobs_that_are_not_cancelled_are_not_called_so(fake, requested, quick, script):
    fake(squeue="echo '12|PENDING|Priority'", scancel=script)
    done = quick("cancel", "runs")
    assert done.returncode == 2
    assert done.stderr.startswith("error: runs: scancel does not answer, or refuses; ")


@pytest.mark.parametrize("script", [FAILS, NONSENSE, NOTHING], ids=["fails", *NAMES[2:]])
def test_what_sbatch_says_is_the_reason(fake, requested, script):
    fake(sbatch=script, squeue=NOTHING, scontrol=script, scancel=NOTHING, srun=NOTHING)
    executor = SlurmLaunch(devices=1, gpus=0).executor(requested)
    with pytest.raises(UserError) as refused:
        executor.start(requested.packs)
    assert str(refused.value).startswith("launch=slurm: ")
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("script", [FAILS, None], ids=["fails", "is not there"])
def test_a_job_that_cannot_be_requeued_says_so(fake, monkeypatch, script):
    if script is None:
        monkeypatch.setenv("PATH", "/nowhere")
    else:
        fake(scontrol=script)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setattr(worker.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit, match="does not requeue jobs"):
        worker._requeue()


def test_a_line_break_in_an_option_of_sbatch_is_refused():
    faults = list(SlurmLaunch(extra={"comment": "x\ntouch /tmp/CODE"}).validate())
    assert faults == ["extra.comment: must be one line, without control characters"]
    assert not list(SlurmLaunch(extra={"mail-type": "END"}).validate())


def test_parameters_are_quoted_in_the_batch_script(fake, requested, tmp_path):
    """sbatch keeps the script; a shell runs it, with `srun` that shows its arguments."""
    fake(
        sbatch=f'cp "$1" {tmp_path}/script.sh; echo Submitted batch job 13',
        squeue=NOTHING,
        scancel=NOTHING,
        scontrol=NOTHING,
        srun=f'for word in "$@"; do echo "<$word>"; done > {tmp_path}/srun',
    )
    evil = "$(touch CODE_WAS_RUN) `touch CODE_WAS_RUN`; 'touch' \"CODE_WAS_RUN\""
    settings = SlurmLaunch(devices=1, gpus=0, partition=evil, extra={"comment": evil})
    assert settings.executor(requested).start(requested.packs) == 1
    subprocess.run(["sh", tmp_path / "script.sh"], cwd=tmp_path, check=False, timeout=20)
    assert not list(tmp_path.rglob("CODE_WAS_RUN"))
    assert not list(requested.out.rglob("*.pkl"))
