"""A sweep file: `pml sweep -f FILE --print-config`."""

from fuzz.mutate import yaml_tree

MUTATE = yaml_tree


def seeds(_base):
    from pml_cli.config.option_files import shipped

    small = b"rank: [1, 2]\nseqlen: range(8,33)\ntrain: {lr: [0.1, 1e-3], steps: 5}\n"
    files = [path.read_bytes() for path in sorted(shipped("sweeps").glob("*.yaml"))]
    return [small, *files]


def read(folder, data):
    from pml_cli.config.dump import describe
    from pml_cli.config.request import load

    path = folder / "sweep.yaml"
    path.write_bytes(data)
    request = load("sweep", [], file=path)
    assert describe(request)
    return [vars(run.train) for run in request.runs[:5]]
