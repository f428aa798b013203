"""The run folder: the contract between training and everything that reads results.

May import `config`, `data` and `model` (settings and sizes), neither torch nor the trainer.

    folder.py         RunFolder: every path of one run, and how its files are written
    fields.py         what is read of a run's JSON files: types and ranges
    run_folders.py    the runs of a results folder, found by the hash in their ids
    output_folder.py  whether a sweep's folder can be used, and what its disk refuses
    samples.py        samples.jsonl: what was to be remembered, and what is written instead
    tokens.py         tokens.parquet: read through one door, as (steps x tokens)
    curve.py          curve.parquet: a few numbers of every training step, checked
    read.py           finished and failed runs, read back as a table
    run_id.py         what makes two runs the same, and the settings that tell them apart
    labels.py         one name for what is the same model or file, two for what is not
    groups.py         which runs are comparable, and the names of groups
"""
