"""Properties that hold for any input, tried on inputs that hypothesis draws.

    conftest.py         how many are drawn: a few, always the same; or thousands
    test_overrides.py   the grammar of the command line, and sweep files
    test_packing.py     cells to packs
    test_run_id.py      the id of a run
    test_run_folder.py  records that a kill at any moment leaves complete or absent
    test_losses.py      losses of padded packs against plain torch
    test_law.py         the law of the gain and of recall, and their inverse
    test_files.py       what is written is what is read

`HYPOTHESIS_PROFILE=thorough python -m pytest -n 0 tests/properties` draws thousands.
"""
