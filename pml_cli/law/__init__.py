"""The memory law: how the gain of an adapter depends on its size and on the length of its text.

Pure functions of arrays and tables, with numpy, scipy and pandas; below it lie `runs`, `config` and
the bottom layer. It imports neither torch nor anything that trains. Statistics return numbers and
codes; `report/law_text.py` makes the sentences.

- observations: the cells that a law is fitted to, and what their size is
- parameters: order, bounds and natural units of the parameters of a law
- forms: the forms of the law; a link is a class
- findings: what a fit or a check concludes, as a code and its numbers
- fit_result: what every fitted law offers
- power_law: the paper's form and its estimator, least squares
- robust: the same form by an MM-estimator
- likelihood: censored maximum likelihood of many problems at once
- mle: maximum likelihood of a form on all cells
- model_selection: held-out checks, information criteria, the choice
- bootstrap: cluster bootstrap and profile likelihoods
- analysis: all laws on one group of cells
- recall_law: the probability of exact recall
- capacity: bits stored for each parameter
- conclusions: what a fit allows to conclude, and the sweep to run next
- group_comparison: do groups share their exponents?
- fit_groups: from runs to fitted groups
- fitted_law: a law with draws of its parameters
- inverse: what a fitted law predicts, and the size or length that reaches a target
- law_json: schema, writer and reader of law.json
"""
