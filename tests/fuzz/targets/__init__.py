"""A door each: `seeds(base)` to begin from, `MUTATE` how they are changed, `read(folder, data)`.

`read` puts the input where pml looks for it, and calls what a command calls; it returns what it got
(results, in which no number may be other than finite). UserError is the one exception allowed.
"""
