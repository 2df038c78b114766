import hashlib


def named_seed(seed: int, name: str) -> int:
    """A seed for each name, the same in every process."""
    digest = hashlib.sha256(f'{seed}:{name}'.encode()).digest()
    return int.from_bytes(digest[:7], 'little')
