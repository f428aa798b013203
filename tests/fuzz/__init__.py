"""Coverage-guided fuzzing of what pml reads of others, by hand: `python tests/fuzz/run.py`.

    run.py      every target in a process of its own, one after the other; the table at the end
    worker.py   one target under atheris
    oracle.py   what an input must not do; one fault of each kind is kept, made small
    mutate.py   changes to trees of values, and to bytes
    folders.py  files of a small run, to begin from
    targets/    a file a door: its seeds, how they are changed, how pml reads them

It needs atheris (`pip install atheris`), which is no dependency of the tests.
"""
