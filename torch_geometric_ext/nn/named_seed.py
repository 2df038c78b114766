import hashlib


def named_seed(seed: int, name: str) -> int:
    """Derive a seed from a seed and a name, equal in all processes."""
    digest = hashlib.sha256(f'{seed}:{name}'.encode()).digest()
    return int.from_bytes(digest[:7], 'little')
