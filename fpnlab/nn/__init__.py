"""Organs as pure functions: ``init_<organ>`` and ``apply_<organ>`` with their specs."""
