"""IL-Rec and discrete soft actor-critic."""
