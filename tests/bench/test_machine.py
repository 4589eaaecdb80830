"""What stands beside every figure."""

from importlib import metadata

from inference_opt.bench import machine


def test_a_checkout_that_is_not_installed_is_described_too(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(machine.metadata, "version", missing)
    assert machine.describe()["inference_opt"] == "not installed"
