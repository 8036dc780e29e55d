"""Where a run's time would go, measured on a small model."""

import pytest

from cliplet.config import RunConfig
from cliplet.training import profile
from cliplet.training.step import Stepper


@pytest.fixture
def profiled(data_set, tiny_config, tmp_path, monkeypatch):
    """Profiles a run on a data set; gives the profile. Measured for a moment only."""

    def profiled(**data):
        monkeypatch.setattr(profile, "SECONDS", 0.05)
        config = RunConfig(
            data={"path": str(data_set), **data},
            model=tiny_config,
            train={"output": str(tmp_path / "run"), "batch_size": 4},
        )
        return profile.profile_data(config)

    return profiled


def test_every_part_is_measured_and_nothing_is_written(profiled, tmp_path):
    found = profiled()
    assert set(found.milliseconds) == {"disk", "decode", "transform", "tokenize"}
    assert all(value > 0 for value in found.milliseconds.values())
    rates = (found.loader_pictures_per_second, found.model_pictures_per_second, found.training_pictures_per_second)
    assert all(rate > 0 for rate in rates)
    assert 0 <= found.data_wait <= 1
    assert (found.picture_width, found.picture_height) == (48, 40)
    assert found.bottleneck in (*found.milliseconds, "model") and found.advice
    assert not (tmp_path / "run").exists()
    assert "tokenize" in str(found.as_dict())


def test_a_slow_stage_is_named(profiled, monkeypatch):
    """Reading made slow for real, by waiting: then the disk is what holds the model up."""
    import time

    from cliplet.data import loader

    read = loader.read_bytes
    monkeypatch.setattr(loader, "read_bytes", lambda *a: (time.sleep(0.1), read(*a))[1])
    found = profiled(workers=1)
    assert found.bottleneck == "disk"
    assert found.milliseconds["disk"] > 100
    assert found.data_wait > 0.5
    assert "cliplet pack" in found.advice


def test_a_slow_model_is_named(profiled, monkeypatch):
    import time

    step = Stepper.step
    monkeypatch.setattr(Stepper, "step", lambda *a, **k: (time.sleep(0.2), step(*a, **k))[1])
    found = profiled()
    assert found.bottleneck == "model" and "times as fast as the model" in found.advice
