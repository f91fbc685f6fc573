"""Floor 7: the only home of Ray actors."""
