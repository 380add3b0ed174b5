"""Data: data sets, the order their samples come in, and how they become batches on the device.

Importing this package imports nothing else; take what you need from its modules:

- ``dataset``: what a data set is, splits, the root folder.
- ``sets``: the data sets, a module each; ``subset``: images a class, long tails and label noise.
- ``loader``: :class:`TrainLoader`, :class:`EvalLoader`, :class:`Batch`.
- ``augment``: policies, mixup and CutMix; ``rng``: the counter-based random numbers that all of it is a function of.
"""
