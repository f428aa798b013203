"""Generated facts as text: a phone book, and a linear rule with an unseen test split."""

from __future__ import annotations

import numpy as np

# (query, target): "Ada Adler:", "9100672710".
Fact = tuple[str, str]

# Random streams of the phone book and of the rule.
PHONEBOOK_STREAM = 5
RULE_STREAM = 6

FIRST_NAMES = """
Ada Alan Alice Amara Amir Anna Anton Arun Beatriz Bela Ben Carla Chen Clara Cora Dario David
Dina Elena Elias Emil Emma Erik Esther Eva Felix Fiona Frank Greta Hana Hugo Ida Igor Ines Iris
Isaac Ivan Jana Jonas Jose Julia Kai Karim Kate Lars Laura Lena Leo Lina Lucas Luisa Maja Marco
Maria Marta Max Mei Mila Mira Nadia Nico Nina Noah Nora Olga Oscar Otto Paul Petra Pia Rafael
Ravi Rita Robin Rosa Ruth Sam Sara Silas Sofia Sven Tara Theo Tina Tom Uma Vera Victor Vikram
Wanda Wei Yara Yusuf Zoe
""".split()
LAST_NAMES = """
Abbott Adler Ahmed Alvarez Andersen Bauer Becker Bell Berg Blanc Boateng Bose Brandt Brown Bruno
Campos Carter Castro Chavez Clark Cohen Costa Cruz Dahl Daniels Das Davis Diaz Dietz Duarte
Dubois Eriksen Evans Farah Fischer Flores Fontana Foster Frank Fuchs Garcia Gomez Grant Gruber
Gupta Haas Hall Hansen Harris Hassan Hayes Hoffman Holm Horvat Huang Hughes Ibrahim Ito Jansen
Jensen Johnson Kaur Keller Kelly Khan Kim King Klein Koch Kovac Kumar Lang Larsen Lee Lehmann
Lewis Lima Lopez Marin Martin Mayer Mendez Meyer Miller Moreno Morgan Moss Mueller Murphy Nguyen
Nilsson Novak Okafor Olsen Ortiz Osman Park Patel Pereira Peters Petrov Popov Quinn Ramos Rao
Reyes Ricci Rossi Roy Ruiz Sato Schmidt Shah Silva Singh Smith Sokolov Stein Suzuki Tanaka
Taylor Torres Tran Turner Vargas Vogel Wagner Walker Wang Weber White Wolf Wong Wright Yang
Young Zhang Ziegler
""".split()


def phonebook(seed: int, digits: int) -> list[Fact]:
    """Names with random numbers.

    Every pair of a first and a last name occurs once; over ten thousand of them.

    Args:
        seed: draws the order and the numbers.
        digits: of each number, each uniform over 0..9.
    """
    random = np.random.default_rng([seed, PHONEBOOK_STREAM])
    names = [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES]
    order = random.permutation(len(names))
    numbers = random.integers(10, size=(len(names), digits))

    entries = []
    for index, number in zip(order, numbers, strict=True):
        entries.append((f"{names[index]}:", "".join(map(str, number))))
    return entries


def rule(seed: int, maximum: int, test_samples: int) -> tuple[list[Fact], list[Fact]]:
    """The rule f(x, y) = 3x + 5y + 7 as facts: "f(2,9)=", "58".

    Args:
        seed: draws the order of the pairs.
        maximum: x and y are from 0..maximum.
        test_samples: pairs that are never trained on, at most half of all.

    Returns:
        The facts to learn, and the test facts.
    """
    random = np.random.default_rng([seed, RULE_STREAM])
    facts = []
    for index in random.permutation((maximum + 1) ** 2).tolist():
        x, y = divmod(index, maximum + 1)
        facts.append((f"f({x},{y})=", str(3 * x + 5 * y + 7)))

    test_count = min(test_samples, len(facts) // 2)
    return facts[test_count:], facts[:test_count]
