"""The manifest of a sweep: read, and its packs planned again, as a worker does."""

from fuzz.folders import first
from fuzz.mutate import json_tree

MUTATE = json_tree


def seeds(base):
    return [first(base, "runs/.pml/requests/*.json")]


def read(folder, data):
    from pml_cli.launch.manifest import SweepManifest, manifest_path

    path = manifest_path(folder, "0123456789")
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    manifest = SweepManifest.read(path)
    packs = manifest.plan_packs()
    assert {cell.id for pack in packs for cell in pack.cells} == set(manifest.work)
    return [list(manifest.work.values()), manifest.requested_at]
