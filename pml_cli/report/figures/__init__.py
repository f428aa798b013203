"""Figures of the reports: a file each, registered with `@figure`.

To add one to `pml fit` or `pml transition`, write a file here with a function that takes what the
report of its group holds (a `law_view.View`, a `TransitionSummary`) and returns a matplotlib
Figure, or None where the cells do not carry it:

    @figure("law-bits", "bits per trainable parameter by rank")
    def bits_figure(view: View) -> Figure | None: ...

Importing these modules imports no matplotlib: that happens when a figure is drawn.

    registry.py             the register, and how figures become files
    style.py                sizes, colours and axes that all figures share
    law_view.py             what the figures of one law draw
    law.py                  the page of a group, and its heat maps
    curves.py               gain by rank and by length
    parity.py               predicted against measured gain
    surface.py              gain over rank and length
    residuals.py            residuals of the law
    profile.py              profile likelihoods and the bootstrap
    comparison.py           exponents of compared groups
    bits_line.py            parameters against bits, over several groups
    heatmaps.py             maps over rank and length, for law.py
    probe.py                one run
    transition.py           `pml transition`: the page of a group, recall by p, by loss, survival
    transition_grid.py      final p of one text by position and rank
    transition_failures.py  first failures against stubborn tokens, and their positions
    memft.py                `pml memft`: accuracy by rank, and the rank that recall takes
    lasting.py              `pml lasting`: recall under each condition, and forgetting
    forgetting.py           `pml forgetting`: recall against harm to other text
    capacity.py             `pml capacity`: bits held exactly against parameters
    methods.py              colours and markers of training losses
"""
