"""Networks of SpikingJelly: in and out."""
