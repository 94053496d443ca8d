"""Complete runs by name: which network, which data, how it is trained and tested, what was published."""
