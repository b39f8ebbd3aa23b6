"""What cache.py and sweeps do for metrics of a whole experiment."""

from Metrics.config import CacheConfig
from Metrics.width.caching import cache_experiment, disagreement
from Utils.runs import open_experiment


def cache_and_tell(config: CacheConfig) -> int:
    """Bring the caches of the experiment that is named up to date, and print their tables.

    Returns:
        the exit code: 1 if exponents disagree with theory, and --assert minds.
    """
    with open_experiment(config) as (experiment, runs):
        found = cache_experiment(config, experiment, runs)
        print("\n\n".join(findings.text() for findings in found))
    return int(config.assert_ and disagreement(found))
