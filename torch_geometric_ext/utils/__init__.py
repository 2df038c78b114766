from .macs import count_macs

__all__ = functions = ['count_macs']
