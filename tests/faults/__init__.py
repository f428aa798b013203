"""Faults at every call that changes a file, for every command that writes.

    fail.c       the library that makes the N-th call fail, or kills the process there
    shim.py      compiles it and tells it what is to fail
    commands.py  the commands, and what their folder holds before
    rounds.py    a command with a fault in a fork of this process, then without
    oracle.py    what a results folder holds, and the verdict on a round
    kills.py     SIGKILL at random moments, hundreds of times

`PYTHONPATH=tests python -m faults` runs all of it and prints the figures;
`PYTHONPATH=tests python -m faults.kills --rounds 100` the kills.
"""
