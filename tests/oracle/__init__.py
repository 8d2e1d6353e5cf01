"""Judges of the serial transformer: a PyTorch twin, and finite differences.

``cases.py``        the models, batches and training runs that both sides go through
``twin.py``         the same transformer in plain PyTorch: autograd, its optimizers, its clipping
``answers.py``      what the twin says about a case: the content of ``tests/golden/*.npz``
``differences.py``  the derivative of any function of arrays, from its values alone
"""
