"""The losses, one file each: settings, token weights, and what is remembered of a sample.

    base          Tokens, Weighted, TokenLoss: what every loss is made of
    sft           mean cross-entropy
    memft_ot      MemFT, only-threshold
    memft_sw      MemFT, spatial window
    memft_margin  logit margin with a growing target

To add a loss, add a file here with a `TokenLoss` registered in the group "loss", its YAML file in
conf/loss, and a test. torch is imported inside functions only: help and shell completion read the
settings.

May import: config, errors.
"""
