"""Whether the first position is a sink: planted in the embedded model, and never in random ones."""

import json
import shutil

import pytest
from support.models import local
from support.sinks import HUB_ID, plant_sink, without_weights

from pml_cli import io
from pml_cli.config.schema import TINY, Model
from pml_cli.model import sink
from pml_cli.model.sink import first_position_is_sink, is_measurable

LAYERS = 6


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and a process that remembers no answer."""
    monkeypatch.setenv("PML_CACHE", str(tmp_path / "cache"))
    sink._cached_ratios.cache_clear()
    return tmp_path / "cache" / "sinks"


@pytest.fixture
def sunk(tmp_path):
    return plant_sink(tmp_path / "sunk")


def cached(folder):
    (path,) = folder.iterdir()
    return path


def test_a_planted_sink_is_measured_once(cache, sunk, monkeypatch):
    assert first_position_is_sink(local(sunk))
    ratios = json.loads(cached(cache).read_text("utf-8"))["ratios"]
    assert len(ratios) == LAYERS and min(ratios) > 2 * sink.SINK_RATIO

    # Another process, and a copy in another folder, ask the cache.
    sink._cached_ratios.cache_clear()
    monkeypatch.setattr(sink, "_measured", lambda *_: pytest.fail("measured again"))
    copy = shutil.copytree(sunk, sunk.with_name("copy"))
    assert first_position_is_sink(local(copy, layer=5))


def test_the_embedded_model_has_no_sink(cache, tmp_path):
    """As `first_position_is_sink` says without a measurement."""
    copy = shutil.copytree(TINY, tmp_path / "copy")
    assert not first_position_is_sink(local(copy, layer=0))
    ratios = json.loads(cached(cache).read_text("utf-8"))["ratios"]
    assert max(ratios) < sink.SINK_RATIO / 2
    assert not first_position_is_sink(Model())


@pytest.mark.parametrize(("layer", "answer"), [(0, True), (3, True), (4, False), (None, False)])
def test_a_sink_below_the_adapter_alone_does_not_count(cache, tmp_path, layer, answer):
    """A norm that has come down again hides nothing; one above the adapter does."""
    copy = shutil.copytree(TINY, tmp_path / "copy")
    first_position_is_sink(local(copy))
    io.write_json(cached(cache), {"ratios": [1.0, 1.0, 1.0, 50.0, 1.0, 1.0]})
    sink._cached_ratios.cache_clear()
    assert first_position_is_sink(local(copy, layer=layer)) is answer


@pytest.mark.parametrize(
    "damage",
    [
        *("", "{", "[]", "[" * 100_000, '{"ratios": 3}', '{"ratios": [1.0]}'),
        *('{"ratios": ["a", 1, 1, 1, 1]}', '{"ratios": ["a", 1, 1, 1, 1, 1]}'),
    ],
)
def test_a_damaged_answer_is_measured_again(cache, sunk, damage):
    first_position_is_sink(local(sunk))
    whole = cached(cache).read_text("utf-8")
    cached(cache).write_text(damage, "utf-8")
    sink._cached_ratios.cache_clear()
    assert first_position_is_sink(local(sunk))
    assert cached(cache).read_text("utf-8") == whole


def test_an_overflow_counts_as_a_sink(cache, tmp_path):
    copy = shutil.copytree(TINY, tmp_path / "copy")
    first_position_is_sink(local(copy))
    io.write_json(cached(cache), {"ratios": [None] * LAYERS})
    sink._cached_ratios.cache_clear()
    assert first_position_is_sink(local(copy))


def test_a_cache_that_cannot_be_written_is_no_fault(sunk, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PML_CACHE", str(tmp_path / "file"))
    sink._cached_ratios.cache_clear()
    assert first_position_is_sink(local(sunk)) and is_measurable(local(sunk))


def test_random_weights_never_have_one(cache):
    assert not first_position_is_sink(Model(weights="random"))
    assert not cache.exists()


def test_weights_that_are_not_here_are_assumed_to_have_one(cache, tmp_path, monkeypatch):
    """Nothing is downloaded: this answers at once, without a network."""
    without_weights(tmp_path / "hub", monkeypatch)
    model = Model(name="far", path=HUB_ID)
    assert first_position_is_sink(model) and not is_measurable(model)
    assert not cache.exists()


def test_without_begin_of_text_there_is_no_first_position(cache, tmp_path):
    copy = shutil.copytree(TINY, tmp_path / "copy")
    plain = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (copy / "tokenizer_config.json").write_text(json.dumps(plain), "utf-8")
    assert first_position_is_sink(local(copy)) and is_measurable(local(copy))
