"""One folder per engine; the only place that imports one."""
