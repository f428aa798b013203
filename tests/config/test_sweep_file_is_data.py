"""A sweep file of somebody else runs nothing, and reads nothing but itself."""

import pytest

CODE = {
    "trust": "model: {trust_remote_code: true}",
    "setup": "launch.setup: [touch CODE_WAS_RUN]",
    "python": "launch: {kind: slurm, python: sh -c true}",
    "extra": "launch.extra.wrap: touch CODE_WAS_RUN",
    "in a grid": "grids: [{rank: 1}, {launch.setup: [touch CODE_WAS_RUN]}]",
}
CALLS = {
    "environment": "data.prompt: '${oc.env:HOME}'",
    "with a default": "data.prompt: '${oc.env:NO_SUCH_NAME,x}'",
    "decoded": "rank: ${oc.decode:${oc.env:HOME}}",
    "a made name": "data.prompt: '${oc.${loss}:HOME}'",
    "in a list": "data.prompt: [a, '${ oc.env : HOME }']",
}


@pytest.mark.parametrize("text", CODE.values(), ids=CODE)
def test_settings_that_are_code_are_refused(tmp_path, quick, text):
    (tmp_path / "theirs.yaml").write_text(f"{text}\n")
    done = quick("sweep", "-f", "theirs.yaml", "--dry-run")
    assert done.returncode == 2
    assert "runs code, which a sweep file may not" in done.stderr
    assert done.stderr.startswith("error: theirs.yaml: ")


@pytest.mark.parametrize("text", CALLS.values(), ids=CALLS)
def test_values_that_are_computed_are_refused(tmp_path, quick, text):
    (tmp_path / "theirs.yaml").write_text(f"{text}\n")
    done = quick("sweep", "-f", "theirs.yaml", "--dry-run")
    assert done.returncode == 2
    assert "a sweep file may refer to other settings" in done.stderr


def test_other_settings_may_be_referred_to(tmp_path, quick):
    (tmp_path / "ours.yaml").write_text("rank: 2\nseqlen: 8\ndata.seed: '${seed}'\n")
    done = quick("sweep", "-f", "ours.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr
