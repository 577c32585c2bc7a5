from .exact import REWRITES

FAST = dict(REWRITES)
