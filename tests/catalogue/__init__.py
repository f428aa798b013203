"""Wrong inputs for every command of pml, and what it has to make of them.

    case.py           one wrong input, the verdict on what pml made of it
    run.py            the command line in a fork of this process, which has imported everything
    damage.py         kinds of damage: to bytes, to paths, to the fields of a file
    folders.py        what a case begins with: runs, a report, a model, a swept folder
    command_lines.py  keys, values, options, commands, places to write to
    settings.py       every declared setting with values of every wrong kind
    sweep_files.py    sweep files, folders of options
    data_files.py     texts and facts in every format
    model_folders.py  config.json, weights, tokenizers
    run_folders.py    result.json and its neighbours, what is measured of runs
    law_files.py      law.json
    fuzzed.py         what fuzzing has found, made small
    sweep_state.py    .pml: manifests, workers, launches, locks, checkpoints; the cache of speeds

`PYTHONPATH=tests python -m catalogue` runs all of it and prints the figures.
"""
