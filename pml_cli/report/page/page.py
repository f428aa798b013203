"""Puts the sections together into one HTML file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from pml_cli.report.page.section import Section, Sources, jsonable
from pml_cli.report.page.sections import (
    audit,
    forgetting,
    law,
    losses,
    predictor,
    recall,
    tokens,
    verdict,
)

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

# In the order of the page.
SECTIONS = (verdict, law, predictor, recall, tokens, losses, forgetting, audit)

# Within a script these would end it, or be read as markup.
MARKUP = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}


def render(sources: Sources) -> str:
    """The page as HTML."""
    made = [module.section(sources) for module in SECTIONS]
    sections = [section for section in made if section is not None]
    environment = _environment()
    bodies = {
        section.name: environment.get_template(f"{section.name}.html.j2").render(section.context)
        for section in sections
    }
    names = ", ".join(str(path) for path in sources.paths)
    return environment.get_template("page.html.j2").render(
        title=f"pml: {names}",
        sections=sections,
        bodies=bodies,
        style=_asset("page.css"),
        plotly=_plotly(),
        script=_scripts(sections),
        data=script_json({section.name: section.data for section in sections}),
    )


def script_json(content: object) -> str:
    """JSON for a script element, whatever the texts in it."""
    text = json.dumps(jsonable(content), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.translate(MARKUP)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["with_code"] = _with_code
    return environment


def _with_code(text: str) -> Markup:
    """A text as HTML, what stands between backticks as code."""
    from markupsafe import Markup, escape

    parts = text.split("`")
    # A backtick without its partner is one.
    if len(parts) % 2 == 0:
        return escape(text)
    code = Markup("<code>{}</code>")
    return Markup("").join(code.format(part) if k % 2 else part for k, part in enumerate(parts))


@cache
def _asset(name: str) -> str:
    return (files(__package__) / "assets" / name).read_text("utf-8")


def _scripts(sections: Sequence[Section]) -> str:
    """What all sections share, then the script of each that has data."""
    scripts = [f"{section.name}.js" for section in sections if section.data is not None]
    return "\n".join(map(_asset, ["page.js", *scripts, "start.js"]))


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
