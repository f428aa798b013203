"""Training the cells of a sweep: planned into packs, and trained by processes that share a folder.

May import evaluation, training, results, data, model and config. Nothing below imports it. What
`pml --help`, `status` and `cancel` load imports neither torch nor numpy.

Planning, before anything runs:

    pack.py        cells that are trained as one batch
    packing.py     from runs to checked cells, and from cells to packs
    cost_model.py  FLOPs and memory of a pack
    packed_cost.py the cost of a step on packed rows
    throughput.py  how fast packs were trained before, and so how long others will take
    devices.py     the devices of this machine, and what a launch may fill of them
    openmp.py      how waiting threads behave

A sweep, from its request to its end:

    driver.py     plan a sweep, train what is missing: `pml sweep`, `pml memft`
    preflight.py  checks of the models before anything is written
    manifest.py   the cells of a sweep as JSON, for its workers and for `pml status`
    executors/    where the workers run: this process, processes, Slurm; a file each
    observer.py   the events of a sweep, for displays
    time_limit.py  a time after which what trains saves and ends

A worker, wherever it runs:

    worker.py         one process that trains the packs of a sweep until none is free
    worker_import.py  importing torch with signals deferred
    lease.py          which process trains which cell: claims, heartbeats, takeovers
    liveness.py       whether another process is alive
    queue.py          the queue of packs, and the loop over it
    pack_trainer.py   trains claimed cells; after a fault in smaller parts
    pack_run.py       one attempt: checkpoints between steps, run folders
    signals.py        signals, obeyed between two training steps

Looking at it from outside:

    status.py  a snapshot of a sweep's folder
    slurm.py   questions to Slurm
"""
