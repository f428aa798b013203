"""Runs in experiment trackers: what `pml track` copies there from the run folders.

May import `results` and `config`. Training knows no tracker; the run folder is the contract. Each
tracker is a file, and an entry in `trackers.py`; its library is imported when it is used.

accelerate's trackers are not used: they send every step by itself, where MLflow takes a thousand
values a request; TensorBoard's writes the settings into a new folder at every call; none knows what
it has already; and those of TensorBoard and MLflow join the process group that the environment of a
job names (`PartialState`), which would wait for its other processes.

    mirrored_run.py  a finished run as trackers take it: settings, curve, results
    base.py          Tracker: what each of them does, and how it remembers what it has
    trackers.py      all of them by name, and what to install
    tensorboard.py   event files
    wandb.py         Weights & Biases, online or offline
    mlflow.py        MLflow: a server, or a database in a file
    trackio.py       Trackio: a database in a file
"""
