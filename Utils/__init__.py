"""What every stage shares: configuration, run folders, storage, devices, seeds, logging.

This room imports no other room and never imports ``torch`` at module level, so that
``--help`` and usage errors are answered before the heavy libraries are loaded.
"""
