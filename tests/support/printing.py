"""What a renderable prints."""

import io

from rich.console import Console


def printed(renderable, width=80):
    """The lines that a console of this width prints, without trailing blanks."""
    out = io.StringIO()
    Console(file=out, width=width).print(renderable)
    return [line.rstrip() for line in out.getvalue().splitlines()]
