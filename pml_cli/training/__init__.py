"""Training: adapters of many cells on one frozen model, each as if it were trained alone.

    trainer      the training loop: a pack of cells
    loss_groups  the losses of a pack
    losses/      one file a loss
    batches      samples as tensors: shared input rows, layout of a batch, order of minibatches
    scoring      the teacher-forced forward pass to scores
    scores       scores of target tokens, and the recall that follows from them
    optimizer    AdamW and gradient clipping for each cell
    curve        the training curve
    checkpoint   a pack on disk in the middle of its training
    limits       sizes that the cost model reads too
    hf_trainer   MemFTLoss and MemFTCallback: the losses in other trainers

May import: runs, data, model, config, and the modules at the bottom.
"""
