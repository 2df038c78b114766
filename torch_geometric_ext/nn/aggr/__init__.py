from .root_aggregation import RootAggregation

__all__ = classes = [
    'RootAggregation',
]
