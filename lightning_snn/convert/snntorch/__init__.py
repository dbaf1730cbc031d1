"""Networks of snntorch: in and out."""
