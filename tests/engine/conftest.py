from engine_conftest import fake_engine

__all__ = ["fake_engine"]
