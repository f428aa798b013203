"""A checkpoint of two cells: found, and its state loaded, or passed over."""

from fuzz.mutate import safetensors

MUTATE = safetensors


def seeds(base):
    import json
    import struct

    content = (base / "checkpoint.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    # As earlier versions wrote it, without a digest.
    fields = json.loads(header["__metadata__"]["pml"])
    del fields["digest"]
    header["__metadata__"]["pml"] = json.dumps(fields)
    text = json.dumps(header).encode()
    return [content, struct.pack("<Q", len(text)) + text + content[8 + length :]]


def read(folder, data):
    from pml_cli.errors import UserError
    from pml_cli.training.checkpoint import Checkpoints

    store = Checkpoints(folder)
    store.folder.mkdir(parents=True)
    store.path(["a", "b"]).write_bytes(data)
    states = []
    for header in store.find(["a", "b"]):
        cells = [name for name in ("a", "b") if header.holds(name, "t")]
        states.append(store.load(header, ["b", "a"], cells))
    if not any(states):
        raise UserError("passed over")
    return [[state.step, state.draws] for state in states if state]
