"""Runs a script in a process of its own, which a server forks."""

import contextlib
import io
import os


def run_script(code, env):
    """Returns what a script prints."""
    os.environ.update(env)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, {'__name__': '__main__'})
    return out.getvalue()
