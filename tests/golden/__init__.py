"""A small sweep and a fit whose results are pinned: an upgrade that changes the science is seen.

sweep.yaml       cells of every loss, kind of adapter and optimiser
cells.csv        what came out of them
law.csv          the parameters of every form, fitted to benchmarks/law.csv
numbers.py       runs both
test_golden.py   compares
__main__.py      prints the deviations; --pin writes the two tables anew
"""
