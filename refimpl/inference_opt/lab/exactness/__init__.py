"""The exact law of what speculation emits, by enumeration; a zoo of wrong rules, a solver, statistics."""
