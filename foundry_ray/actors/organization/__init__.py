"""One organization: coordinator, index, runtime issues, audit (S12, S29)."""
