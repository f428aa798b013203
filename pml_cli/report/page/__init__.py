"""The page of `pml report`: one HTML file that needs no network.

`sections/` has a module for each part of the page, `assets/` its templates, style and scripts.
What comes from files goes through the templates' escaping, or as JSON to scripts that show it as
text; nothing of it is ever markup.

    page.py     puts the sections together
    section.py  what a section is, and what all of them are made from
    sections/   a module for each part of the page
"""
