from .prototypes import HypersphericalPrototypes

__all__ = classes = [
    'HypersphericalPrototypes',
]
