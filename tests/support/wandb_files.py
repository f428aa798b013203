"""The records of an offline run of W&B: a log as LevelDB writes it, of protobuf messages."""

import json
import struct

BLOCK = 32768
FILE_HEADER = 7
CHUNK_HEADER = 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path):
    """The messages of a .wandb file."""
    from wandb.proto import wandb_internal_pb2

    for content in contents(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        yield record


def contents(data):
    place, pending = FILE_HEADER, b""
    while place + CHUNK_HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < CHUNK_HEADER:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        if not kind:
            place += left
            continue
        place += CHUNK_HEADER
        pending += data[place : place + length]
        place += length
        if kind in (FULL, LAST):
            yield pending
            pending = b""


def values(items):
    """Key to value of the items of a record."""
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
