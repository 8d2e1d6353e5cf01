"""What ``scripts/check_gpu`` asks: ``facts``, tests, ``transports``, ``bench``."""
