"""Measures of a trained adapter: recall, held-out gain, forgetting, robustness to deployment.

Each measure is a file whose `measure` takes a model, a bank of adapters and samples for each of
them, and returns a mapping of named numbers for each adapter.

    decoding       free-running greedy decoding
    held_out_gain  loss gained on held-out samples of the source
    forgetting     loss, and KL divergence from the base, on other text
    eval_text      that other text, in windows that share nothing with what a run was trained on
    quantize       absmax rounding of weights
    conditions     the conditions of `pml lasting` by name (without torch)
    deployment     adapters rounded, merged and in bfloat16
    robustness     one run under every condition: the body of lasting.json
    subject        a finished run that is to be measured
    lasting_runs   the runs that `pml lasting` measures, and lasting.json
    result         the body of result.json
    environment    the body of env.json

May import: training, runs, data, model, config, and the modules at the bottom.
"""
