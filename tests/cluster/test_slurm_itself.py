"""The Slurm that the other tests of this folder run on does what those of clusters do."""

import subprocess

import pytest


def test_array_tasks_get_a_gpu_each(slurm, tmp_path):
    script = "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES; sleep 4"  # all four at the same time
    job = slurm.submit(script, "--array=0-3", "--gpus-per-node=1", f"--output={tmp_path}/%a")
    slurm.wait(lambda: not slurm.states(job))
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == [
        "n1 0\n",
        "n1 1\n",
        "n2 0\n",
        "n2 1\n",
    ]


def test_a_requeued_job_runs_again_and_a_controller_restart_loses_none(slurm, tmp_path):
    log = tmp_path / "log"
    log.touch()
    script = f"echo began ${{SLURM_RESTART_COUNT:-0}} >>{log}; exec sleep 300"
    job = slurm.submit(script, f"--output={tmp_path}/out")
    slurm.wait(lambda: log.read_text() == "began 0\n")
    slurm.run("scontrol", "requeue", job)
    slurm.wait(lambda: log.read_text() == "began 0\nbegan 1\n")
    slurm.stop_controller()
    assert subprocess.run(["squeue"], capture_output=True, check=False).returncode != 0
    slurm.start_controller()
    assert slurm.states(job) == ["RUNNING"]


@pytest.mark.parametrize("site", ["plain", "sigterm"], indirect=True)
def test_a_preempted_job_gets_the_signal_of_its_site(slurm, tmp_path, request):
    log = tmp_path / "log"
    log.touch()
    traps = f'for s in USR2 TERM; do trap "echo $s >>{log}" $s; done'
    told = f"{traps}; echo began >>{log}; while :; do sleep 0.1; done"
    # Signals go to the steps; to the batch script only with `--signal=B:...`, or when the grace
    # time is over.
    node = ("-w", "n1", "--exclusive", "-o", "/dev/null")
    slurm.submit(f"srun bash -c '{told}'", "-p", "low", "--signal=USR2@5", *node)
    slurm.wait(lambda: log.read_text() == "began\n")
    slurm.submit("true", "-p", "high", *node)
    slurm.wait(lambda: log.read_text().count("\n") > 1)
    assert log.read_text().split()[1] == ("TERM" if "sigterm" in request.node.name else "USR2")
