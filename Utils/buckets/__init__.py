"""Folders in buckets of Cloud Storage: a working copy here, which is sent there and fetched back.

Only `places` is imported where a run may be in a folder of this machine.
"""
