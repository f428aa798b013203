"""What automatic settings are for a model and its data, before ids are made.

Afterwards config.yaml and the run id hold the values themselves. In a run that is not resolved, an
automatic value stands for the behaviour before the setting existed, as in the config.yaml of such a
run.
"""

from __future__ import annotations

import dataclasses

from pml_cli.config.cache_key import CacheKey, file_cache
from pml_cli.config.schema import TEMPLATE_DATE, Data, FactsData, Model, Run
from pml_cli.data.lengths import with_length
from pml_cli.model.tokenizer import open_tokenizer
from pml_cli.model.tokenizer_backend import has_tokenizer


def resolved_run(run: Run) -> Run:
    """The run with every automatic value replaced by what it is for its model and data.

    Raises:
        UserError: a value that a model or its tokenizer cannot have.
    """
    data = _resolved_data(CacheKey(run.model), CacheKey(run.data))
    return with_length(dataclasses.replace(run, data=data))


# The cells of a sweep share their data.
@file_cache(1024)
def _resolved_data(model: CacheKey, data: CacheKey) -> Data:
    settings: Data = data.value.resolved(model.value)
    settings = _resolved_template(settings, model.value)
    if isinstance(settings, FactsData):
        settings = _resolved_facts(settings, model.value)
    return settings


def _resolved_template(data: Data, model: Model) -> Data:
    """System turn and date as they count: not without a chat template that reads them.

    Raises:
        UserError: there is no template, or it does not take a setting.
    """
    if not data.chat:
        # No template, no system turn: the behaviour before the setting existed.
        return dataclasses.replace(data, system="")
    # Random tokens need no tokenizer; a template does, as the source says.
    if not has_tokenizer(model):
        return data

    tokenizer = open_tokenizer(model)
    tokenizer.check_template(data)
    # A date that no prompt holds makes no other run.
    if data.date != TEMPLATE_DATE and not tokenizer.reads_date(data):
        return dataclasses.replace(data, date=TEMPLATE_DATE)
    return data


def _resolved_facts(data: FactsData, model: Model) -> FactsData:
    """End, separator and begin of facts."""
    # In a chat the template parts prompt and target, and begins the text.
    begin = True if data.chat else data.begin
    if begin is None:
        begin = open_tokenizer(model).adds_begin

    end = data.end
    if end == "auto":
        end = open_tokenizer(model).end_text(data.chat)

    separator = "" if data.chat else data.separator
    if separator is None:
        separator = data.automatic_separator()
    return dataclasses.replace(data, end=end, separator=separator, begin=begin)
