"""Every layout beside every other: equal to serial, and what each holds, sends and waits for.

``equality`` says what equal means.  ``run`` goes through the layouts: ``proof`` compares one
float64 step with serial, ``measure`` trains for real and takes down bytes (``memory``, and the
ledger of ``comm/``) and times; ranks that have no part in a layout are ``asleep``.  ``record``
makes plain values of it all, beside the closed forms of ``predict/``.  From those alone come the
``verdict``, the ``table``, the three ``sentences`` and the picture (``plot``).
"""
