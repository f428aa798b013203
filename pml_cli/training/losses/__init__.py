"""The losses: one file each, with its settings, its token weights and what it remembers of a sample.

    base          Tokens, Weighted, TokenLoss: what every loss is made of
    sft           mean cross-entropy
    memft_ot      MemFT, only-threshold
    memft_sw      MemFT, spatial window
    memft_margin  logit margin with a growing target

To add a loss, add a file here with a `TokenLoss` registered in the group "loss", its YAML file in conf/loss, and a test.
Nothing here imports torch when it is imported: help and shell completion read the settings.
May import: config, errors.
"""
