"""What people get to read: tables, figures, LaTeX, and the files of a report folder.

The numbers come from law/ and analysis/, which know no sentences; here they are put into words and
drawn. May import every package below (law, analysis, launch, results, data, config) but neither
torch nor the trainer; matplotlib only inside the functions that draw. A report never changes a
number.

    law_folder.py         the files of `pml fit`
    law_text.py           sentences about laws: what a fit found, what its parameters mean
    latex.py              law.tex
    transition_folder.py  the files of `pml transition`
    memft_folder.py       the files of `pml memft`
    lasting_folder.py     the files of `pml lasting`
    forgetting_folder.py  the files of `pml forgetting`
    foreign_files.py      what is none of pml's is never replaced
    folder_index.py       index.md: what each figure and table of a folder shows
    measure_folder.py     the files of `pml measure`
    memorize_folder.py    the files of `pml memorize`
    capacity_folder.py    the files of `pml capacity`
    memorize_report.py    what its answer consists of
    memorize_text.py      the answer in words
    search_text.py        what is said while `pml memorize` searches the least rank
    forgetting_text.py    what a harm means, in words
    design.py             the line of a dry run: how sharp the law will be
    first_token.py        the warning that first tokens never moved
    measuring.py          finished runs measured again: what is left out, progress, resuming
    base_knowledge.py     what a base model knows before any training
    run_notes.py          warnings about the runs that a report reads
    sweep_summary.py      what is said of a sweep before it trains and when it has ended
    sweep_grid.py         the cells of a sweep as a grid that fills in
    output.py             where a command prints its result, its progress, and JSON
    progress.py           live displays of a sweep, a probe, and of anything that is counted
    fitting.py            groups of runs fitted with a display of the progress
    page/                 the page of `pml report`
    tables/               what the commands print
    figures/              what they draw
"""
