"""Token F1 by hand."""

import pytest

from pml_cli.evaluation.answers import normalised_words, token_f1


@pytest.mark.parametrize(
    ("answer", "target", "f1"),
    [
        ("The Kestrel 40.", "kestrel 40", 1.0),
        # Two of four words, two of two: precision 1/2, recall 1.
        ("It is Kestrel 40", "The Kestrel 40.", 2 / 3),
        # A word that is written twice counts once where the target has it once.
        ("no no no", "No.", 1 / 2),
        ("Odile Brandt", "Piet", 0.0),
        ("", "Piet", 0.0),
        ("The", "an ...", 1.0),
    ],
)
def test_f1_by_hand(answer, target, f1):
    assert token_f1(answer, target) == pytest.approx(f1)
    assert token_f1(target, answer) == pytest.approx(f1)


def test_articles_within_words_stay():
    assert normalised_words("A theatre, an ant; the-end") == ["theatre", "ant", "theend"]
