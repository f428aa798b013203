"""Every case, door by door."""

from __future__ import annotations

from catalogue import (
    command_lines,
    data_files,
    fuzzed,
    law_files,
    model_folders,
    run_folders,
    settings,
    sweep_files,
    sweep_state,
)
from catalogue.case import Case

TABLES = (
    *(command_lines, settings, sweep_files, data_files, model_folders),
    *(run_folders, law_files, sweep_state, fuzzed),
)


def all_cases() -> list[Case]:
    """All of them; the name of a case is unique within its door."""
    return [case for table in TABLES for case in table.cases()]
