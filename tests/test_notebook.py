"""The notebook of the docs runs from nothing, and shows what is printed in it."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

pytestmark = pytest.mark.slow

NOTEBOOK = Path(__file__).parents[1] / "docs" / "first_law.ipynb"


def printed(notebook):
    """The texts of all outputs, without pictures."""
    return [
        "".join(output.get("text") or output["data"].get("text/plain", ""))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" not in output.get("data", {}) and output.get("name") != "stderr"
    ]


def test_the_law_from_nothing(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    told = printed(notebook)
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    assert (tmp_path / "outputs" / "notebook" / "fit" / "law.json").exists()

    recall, formula, *_ = printed(notebook)
    # To the second digit; the last bits of a training differ between machines.
    assert recall == told[0] and formula == told[1]
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 2
