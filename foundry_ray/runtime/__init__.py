"""Floor 2: durable actors, without Ray and without a domain."""
