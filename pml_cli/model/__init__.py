"""The frozen model and the adapters on it. May import config, io, format, stats and errors.

Without torch, for planning:
    gguf: GGUF files as base models
    gguf_layout: where a GGUF file keeps its header and tensors
    file_hash: a quick hash of weight files, for the id
    files: the files of a model, and its config.json
    families: what pml knows of each family of models, one record a family
    dims: sizes of a model from its config.json
    device: the device that a model lies on, and its memory (torch only where it is inspected)
    tokenizer: text to token ids
    chunk_sizes: how much is computed at once

The frozen model:
    loading: from settings to a SplitModel
    split_model: the model split at the adapter layer: cached prefix, trained upper layers
    layer_calls: single decoder layers, called, skipped or captured
    modules: decoder layers, norms and linear modules of a transformers model
    verify_split: the split pass against the model's own
    streaming: layers whose weights are read when they run
    head: chunked cross-entropy of the output layer
    weight_hash: exact checksums of weights

The adapters:
    adapter_bank: LoRA adapters of several cells as one batch
"""
