"""Executors: where the workers of a sweep run. One file for each kind of launch.

Each file declares the settings of its kind (`launch=NAME launch.key=value`) and the executor behind
them. To add one: a file here, conf/launch/NAME.yaml, and a call of tests/support/executors.py.

    base.py    Executor, and WorkerPool for executors that start workers and wait for them
    inline.py  this process
    local.py   processes of this machine, each with a device of its own
    slurm.py   an array of jobs on a Slurm cluster

The modules are imported for `pml --help`, so they import torch, numpy and submitit only when used.
"""
