"""Statistics of finished runs besides the memory law, as numbers: sentences are made in `report`.

May import `results`, `law`, `evaluation.conditions` and the layers below them; neither torch nor
the trainer.

    run_selection.py    which finished runs a transition report covers
    paired.py           losses compared with plain fine-tuning, pair by pair
    rank_thresholds.py  the rank at which half of the samples are recalled verbatim
    trajectories.py     p of each target token at every logged step (tokens.parquet)
    transition.py       the phase transition at p > 0.5 in one group of runs
    first_failures.py   where recall breaks, and which positions first failures share
    survival.py         how long tokens stay stubborn (Kaplan-Meier)
    rank_search.py      the least rank that knows all facts: which cells to try next
    growth.py           the longest prefix recalled whole: which length to try next
    capacity.py         what adapters hold exactly, by size, over texts
    deployment.py       recall after rounding and merging, and forgetting
    forgetting.py       recall against harm to other text, and its Pareto front
"""
