"""The commands, a file each: read, compute by the packages below, print, return.

A command's `run` returns the exit code. It may import every package but pml_cli.cli, and no other
command: what two of them share lies below, such as the sweep that `pml memft` runs first
(launch/driver.py).

    probe.py       train one adapter and watch it
    sweep.py       train every combination, resumable
    memft.py       a sweep under several losses, and their comparison
    memorize.py    from facts to the smallest adapter that knows them
    capacity.py    the longest prefix that an adapter recalls whole
    status.py      `pml status` and `pml cancel`
    fit.py         the law of finished runs
    report.py      all of it as one page for the browser
    predict.py     what a fitted law says of other ranks and lengths
    transition.py  the phase transition, token by token
    ask.py         questions to the adapter of a finished run
    lasting.py     recall after rounding and merging, and forgetting
    measure.py     what any adapter holds of a text
    forgetting.py  what adapters do to other text
    track.py       finished runs mirrored into an experiment tracker
    settings.py    every setting with its default, meaning and allowed values
"""
