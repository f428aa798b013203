"""config.yaml of a run: read back, named, its samples taken again as `pml lasting` does."""

from fuzz.folders import first
from fuzz.mutate import yaml_tree

MUTATE = yaml_tree


def seeds(base):
    from pml_cli.config.dump import to_yaml
    from pml_cli.config.schema import LinearAdapter, Run, Train
    from pml_cli.data.sources.phonebook import PhonebookData

    other = Run(data=PhonebookData(), adapter=LinearAdapter(), train=Train(epochs=4, batch=2))
    return [first(base, "runs/*/config.yaml"), to_yaml(other).encode()]


def read(folder, data):
    from pml_cli.config.dump import to_yaml
    from pml_cli.config.load import read_run
    from pml_cli.evaluation.finished_runs import check_code_is_allowed, trained_samples
    from pml_cli.results.folder import RunFolder
    from pml_cli.results.run_id import run_id, settings_label

    run_folder = RunFolder(folder, "run")
    run_folder.path.mkdir()
    run_folder.config.write_bytes(data)
    run = read_run(run_folder.config)
    check_code_is_allowed(run, run_folder, False)
    samples = trained_samples(run, run_folder.path)
    assert to_yaml(run) and run_id(run) and settings_label(run) is not None
    # Infinity is a way to write that nothing is clipped.
    train = vars(run.train) | {"clip": 0.0}
    return [train, [sample.target for sample in samples]]
