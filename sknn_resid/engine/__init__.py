"""The training engine: stacks of dense networks, trained together, each as it would be alone.

Knows nothing of scikit-learn and can be read alone. From the ground up: `kernels` (bound
operations), `activations`, `losses`, `schedules`, `spec` (what to train), `data` (rows), `slots`
(batches in memory), `network` (forward and backward), `optimizers`, `history` (counting and
stopping), `fitted` (prediction), `job`, `validation`, `stack`, `loop`, `lbfgs`, `threads`, `runner`
(the door).
"""
