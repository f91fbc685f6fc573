"""Floor 0: values and rules that know nobody."""
