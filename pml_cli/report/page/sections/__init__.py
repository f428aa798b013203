"""The parts of the page: `section(sources)` gives each, or None where there is nothing to show.

Its template is assets/NAME.html.j2, its script assets/NAME.js.

    verdict.py     the answer in three sentences
    law.py         gain against rank and length, with the law
    predictor.py   which rank a text takes
    recall.py      heat maps over rank and length
    tokens.py      p of each token while it is learned, and the text itself
    losses.py      losses side by side
    forgetting.py  recall against harm to other text
    audit.py       cells left out, settings, versions
"""
