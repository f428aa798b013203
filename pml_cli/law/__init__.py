"""The memory law: how the gain of an adapter depends on its size and on the length of its text.

Pure functions of arrays and tables, with numpy, scipy and pandas; below it lie `results`, `config`
and the bottom layer. It imports neither torch nor anything that trains. Statistics return numbers
and codes; `report/law_text.py` makes the sentences.

    observations.py      the cells that a law is fitted to, and what their size is
    parameters.py        order, bounds and natural units of the parameters of a law
    forms.py             the forms of the law; a link is a class
    findings.py          what a fit or a check concludes, as a code and its numbers
    fit_result.py        what every fitted law offers
    power_law.py         the paper's form and its estimator, least squares
    robust.py            the same form by an MM-estimator
    likelihood.py        censored maximum likelihood of many problems at once
    mle.py               maximum likelihood of a form on all cells
    model_selection.py   held-out checks, information criteria, the choice
    noise.py             does the noise grow with the gain?
    bootstrap.py         cluster bootstrap and profile likelihoods
    exponents.py         intervals of alpha and beta over every form that fits nearly as well
    lack_of_fit.py       is the truth among the forms?
    text_deviations.py   which text is off
    quality.py           the three above, for the chosen law
    analysis.py          all laws on one group of cells
    recall_law.py        the probability of exact recall
    half_recall.py       the size at which half of the samples of a text are recalled
    bits_line.py         effective parameters against bits: one line for several groups
    first_token.py       runs whose first token never moved
    capacity.py          bits stored for each parameter
    conclusions.py       what a fit allows to conclude, and the sweep to run next
    group_comparison.py  do groups share their exponents?
    fit_groups.py        from runs to fitted groups
    fitted_law.py        a law with draws of its parameters
    inverse.py           what a fitted law predicts, and the size or length that reaches a target
    design.py            a planned grid simulated from the law of a pilot
    law_fields.py        what is read of law.json: types and ranges
    law_json.py          schema, writer and reader of law.json
"""
