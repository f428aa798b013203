"""The optimisers of a pack, one file each: every cell is trained as if it were alone.

    base.py         what the trainer needs of an optimiser
    registry.py     the optimiser of `train.optimizer`
    adamw.py        AdamW
    muon.py         Muon: momentum, orthogonalised
    lbfgs.py        L-BFGS: inverse Hessian and line search of each cell, in shared passes
    line_search.py  the strong Wolfe line search, one pass at a time
    secants.py      the inverse Hessian
    whitening.py    its first guess: white inputs
    convergence.py  what more training would gain
    clipping.py     gradient clipping for each cell

To add an optimiser, add a file here with an `Optimizer`, its name in registry.py and, with its
learning rate, in LEARNING_RATES of config/schema.py, and a test against torch's own.

May import: energy.py and limits.py of training, model, config, and the modules at the bottom.
"""
