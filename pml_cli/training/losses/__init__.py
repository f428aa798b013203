"""The losses, one file each: settings, token weights, and what is remembered of a sample.

    base.py          Tokens, Weighted, TokenLoss: what every loss is made of
    sft.py           mean cross-entropy
    memft_ot.py      MemFT, only-threshold
    memft_sw.py      MemFT, spatial window
    memft_margin.py  logit margin with a growing target

To add a loss, add a file here with a `TokenLoss` registered in the group "loss", its YAML file in
conf/loss, and a test. torch is imported inside functions only: help and shell completion read the
settings.

May import: config, errors.
"""
