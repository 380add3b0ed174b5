"""The data room: data sets, the order their samples come in, and how they become batches on the device.

Importing this package imports nothing else; take what you need from its modules:

- ``dataset``: what a data set is, splits, the root folder.
- ``digits``, ``mnist``, ``cifar``, ``image_folder``: the sets.
- ``loader``: :class:`TrainLoader`, :class:`EvalLoader`, :class:`Batch`.
- ``mix``: mixup and CutMix; ``rng``: the counter-based random numbers that all of it is a function of.
"""
