"""The first position of a real model is a sink, whatever layer has the adapter."""

import pytest

from pml_cli.config.cache_key import CacheKey
from pml_cli.config.schema import Model, Run
from pml_cli.data.resolve import resolved_run
from pml_cli.data.sources.text import TextData
from pml_cli.data.stream import SINK_PROMPT
from pml_cli.model.sink import SINK_RATIO, _ratios, first_position_is_sink

LAYERS = 30


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_first_position_is_a_sink(smollm2_folder, dtype):
    model = Model(name="smollm2", path=str(smollm2_folder), dtype=dtype)
    for layer in range(LAYERS):
        model.layer = layer
        assert first_position_is_sink(model), layer
    # At the adapter's own layer it is far from the limit.
    assert _ratios(CacheKey(model))[20] > 20 * SINK_RATIO
    assert resolved_run(Run(model=model, data=TextData())).data.prompt == SINK_PROMPT
