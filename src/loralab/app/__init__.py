"""From a configuration to a finished run; the only place that knows every other."""
