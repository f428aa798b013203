"""Tables for the terminal: readable at 80 columns, in a pipe, and without colour.

Each file has the tables of one command. They take results and return what rich prints; only
`show` functions print themselves.

    layout.py      how every table is laid out
    results.py     the cells of a sweep
    probe.py       one run
    ask.py         answers of an adapter
    samples.py     the samples that are not recalled
    data.py        how much data there is, and what of it cannot be learned
    dry_run.py     what a sweep would do and cost
    law.py         fitted laws and their comparison
    law_summary.py  what `pml fit` prints of them by itself
    bits_line.py   effective parameters against bits, one line for all groups
    predict.py     predictions of a law
    memft.py       losses compared pair by pair
    transition.py  the phase transition
    lasting.py     recall after rounding and merging, and forgetting
    measure.py     what one adapter holds of a text
    forgetting.py  harm to other text, beside recall
    setups.py      titles of setups, means with their intervals
    memorize.py    the least rank that knows all facts, and what it harms
    capacity.py    what adapters hold exactly
    status.py      a snapshot of a sweep
    settings.py    the settings that may be given
"""
