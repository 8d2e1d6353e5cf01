"""Every layout beside every other: equal to serial, and what each holds, sends and waits for."""
