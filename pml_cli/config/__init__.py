"""What one run is: settings declared once, read from YAML files and the command line, and checked.

May import: errors, format, io, stats. Neither torch nor anything that trains.

    setting.py       `setting`: type, default, help, unit and allowed values on a dataclass field
    schema.py        settings of a run: model, adapter, training; bases of losses, data, launchers
    reports.py       the settings of fit, predict, lasting, transition and ask
    questions.py     the arguments of `pml ask`
    memorize.py      the files and limits of `pml memorize`
    capacity.py      what `pml capacity` asks for
    measure.py       the adapter, text and settings of `pml measure`
    registry.py      the settings classes of a group, one file each in the group's package
    option_files.py  the YAML files of conf/ and of a user's folder, by group
    override_text.py values of Python and names of files as overrides in Hydra's grammar
    compose.py       Hydra: the grammar of overrides, YAML files composed (the only user of hydra)
    convert.py       values to the types that a settings class declares
    option_set.py    the settings of one option for each group, and runs that differ from them
    grid.py          every combination of the values given
    unread.py        settings that were given to no effect
    sweep_file.py    sweep files
    request.py       from a command line to a typed request, all faults named at once
    load.py          a run read back from its folder
    dump.py          settings as YAML or JSON: a run's config.yaml, --print-config
    help.py          help texts made from the declarations
    listing.py       the declared settings, as `pml settings` lists them
    completion.py    shell completion
    cache_key.py     settings as a cache key
"""

from pml_cli.config.schema import TINY

__all__ = ["TINY"]
