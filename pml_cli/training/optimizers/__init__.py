"""The optimisers of a pack, one file each: every cell is trained as if it were alone.

    base.py      what the trainer needs of an optimiser
    registry.py  the optimiser of `train.optimizer`
    adamw.py     AdamW
    muon.py      Muon: momentum, orthogonalised
    clipping.py  gradient clipping for each cell

To add an optimiser, add a file here with an `Optimizer`, its name in registry.py and, with its
learning rate, in LEARNING_RATES of config/schema.py, and a test against torch's own.

May import: model, config, and the modules at the bottom.
"""
