"""Training: adapters of many cells on one frozen model, each as if it were trained alone.

    trainer.py        the training loop: a pack of cells
    loss_groups.py    the losses of a pack
    losses/           one file a loss
    keep.py           loss.keep: what holds the adapters of a pack down on other text
    keep_text.py      that text as the base model reads it, and the harm of adapters on it
    keep_harm.py      loss.keep_harm: the weight of the penalty, found in training
    energy.py         loss.keep_by=energy: the square of what an adapter adds
    keep_kl.py        loss.keep_by=kl: the divergence from the base
    batches.py        samples as tensors: shared input rows, layout of a batch, order of minibatches
    scoring.py        the teacher-forced forward pass to scores
    scores.py         scores of target tokens, and the recall that follows from them
    optimizers/       one file an optimiser
    input_moments.py  the second moment of what the adapters of a cell read
    curve.py          the training curve
    checkpoint.py     a pack on disk in the middle of its training
    checkpoint_header.py  which cells it holds, at which step
    limits.py         sizes that the cost model reads too
    hf_trainer.py     MemFTLoss and MemFTCallback: the losses in other trainers
    keep_drop_in.py   loss.keep there, on PEFT's LoRA modules
    sample_memory.py  what they remember of every sample

May import: results, data, model, config, and the modules at the bottom.
"""
