"""The frozen model and the adapters on it. May import config, io, format, stats and errors.

Without torch, for planning:

    files.py        the files of a model
    model_config.py its config, as transformers resolves it
    faults.py       what loaders raise, as one line
    weight_files.py which safetensors files hold the weights, and whether they are here
    generation.py   what a model's own settings add to greedy decoding
    gguf.py         GGUF files as base models
    gguf_layout.py  where a GGUF file keeps its header and tensors
    file_hash.py    a quick hash of weight files, for the id of a run
    families.py     what pml knows of each family of models, one record a family
    dims.py         sizes of a model from its config.json
    device.py       the device that a model lies on, and its memory
    chunk_sizes.py  how much is computed at once

Text and token ids, with transformers except for the embedded model:

    tokenizer.py          text to token ids and back, prompts, end tokens
    tokenizer_backend.py  a tokenizer as its library reads it
    chat_template.py      the prompt of a chat template, and the end of its answer
    sink.py               whether the first position is an attention sink

The frozen model:

    loading.py       from settings to a SplitModel
    split_model.py   the model split at the adapter layer: cached prefix, trained upper layers
    layer_calls.py   single decoder layers, called, skipped or captured
    compiled.py      layers through torch.compile
    packed_rows.py   several samples in a row, none of which sees another
    modules.py       decoder layers, norms and linear modules of a transformers model
    verify_split.py  the split pass against the model's own
    verify_packed.py whether samples in packed rows get what each gets in its own
    streaming.py     layers whose weights are read when they run
    head.py          chunked cross-entropy of the output layer
    weight_hash.py   exact checksums of weights

The adapters:

    adapter_bank.py  LoRA adapters of several cells as one batch
    read_back.py     whether PEFT reads a saved adapter as it was trained
"""
