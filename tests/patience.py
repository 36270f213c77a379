"""How long tests wait for what has to happen, before they say that it did not."""

DEADLINE = 200.0  # seconds; on a quick machine nothing takes a tenth of it
