"""Generated facts as text: a phone book, and a linear rule with an unseen test split."""

from __future__ import annotations

import numpy as np

FIRST = """
Ada Alan Alice Amara Amir Anna Anton Arun Beatriz Bela Ben Carla Chen Clara Cora Dario David Dina Elena Elias Emil
Emma Erik Esther Eva Felix Fiona Frank Greta Hana Hugo Ida Igor Ines Iris Isaac Ivan Jana Jonas Jose Julia Kai Karim
Kate Lars Laura Lena Leo Lina Lucas Luisa Maja Marco Maria Marta Max Mei Mila Mira Nadia Nico Nina Noah Nora Olga
Oscar Otto Paul Petra Pia Rafael Ravi Rita Robin Rosa Ruth Sam Sara Silas Sofia Sven Tara Theo Tina Tom Uma Vera
Victor Vikram Wanda Wei Yara Yusuf Zoe
""".split()
LAST = """
Abbott Adler Ahmed Alvarez Andersen Bauer Becker Bell Berg Blanc Boateng Bose Brandt Brown Bruno Campos Carter Castro
Chavez Clark Cohen Costa Cruz Dahl Daniels Das Davis Diaz Dietz Duarte Dubois Eriksen Evans Farah Fischer Flores
Fontana Foster Frank Fuchs Garcia Gomez Grant Gruber Gupta Haas Hall Hansen Harris Hassan Hayes Hoffman Holm Horvat
Huang Hughes Ibrahim Ito Jansen Jensen Johnson Kaur Keller Kelly Khan Kim King Klein Koch Kovac Kumar Lang Larsen Lee
Lehmann Lewis Lima Lopez Marin Martin Mayer Mendez Meyer Miller Moreno Morgan Moss Mueller Murphy Nguyen Nilsson Novak
Okafor Olsen Ortiz Osman Park Patel Pereira Peters Petrov Popov Quinn Ramos Rao Reyes Ricci Rossi Roy Ruiz Sato
Schmidt Shah Silva Singh Smith Sokolov Stein Suzuki Tanaka Taylor Torres Tran Turner Vargas Vogel Wagner Walker Wang
Weber White Wolf Wong Wright Yang Young Zhang Ziegler
""".split()


def phonebook(seed: int, digits: int) -> list[tuple[str, str]]:
    """Every pair of a first and a last name once, in a seeded order, each with a uniform number of `digits` digits.

    Returns:
        (query, target) pairs such as ("Ada Adler:", "9100672710"); over ten thousand of them.
    """
    rng = np.random.default_rng([seed, 5])
    names = [f"{first} {last}" for first in FIRST for last in LAST]
    order = rng.permutation(len(names))
    numbers = rng.integers(10, size=(len(names), digits))
    return [
        (f"{names[i]}:", "".join(map(str, number)))
        for i, number in zip(order, numbers, strict=True)
    ]


def rule(
    seed: int, maximum: int, test_samples: int
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """f(x, y) = 3x + 5y + 7 pairs to learn, and `test_samples` others never trained on (at most half)."""
    rng = np.random.default_rng([seed, 6])
    pairs = [divmod(int(i), maximum + 1) for i in rng.permutation((maximum + 1) ** 2)]
    rows = [(f"f({x},{y})=", str(3 * x + 5 * y + 7)) for x, y in pairs]
    unseen = min(test_samples, len(rows) // 2)
    return rows[unseen:], rows[:unseen]
