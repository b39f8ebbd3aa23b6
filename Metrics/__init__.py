"""What is measured, and what theory says of it: a registry of metrics, one module per family.

Importing this room costs nothing; ``torch`` is imported by the modules that compute.
"""

from Metrics.config import CacheConfig
from Metrics.registry import METRICS, MetricEntry

__all__ = ["METRICS", "CacheConfig", "MetricEntry"]
