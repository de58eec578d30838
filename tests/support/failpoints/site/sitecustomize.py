"""Loaded by every Python process that is started with this folder on PYTHONPATH, and by no other."""

import failpoint_hook

failpoint_hook.install()
