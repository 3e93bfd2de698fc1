"""The training engine: stacks of dense networks, trained together, each as it would be alone.

Knows nothing of scikit-learn and can be read alone. From the ground up: `kernels` (bound
operations), `activations`, `losses`, `schedules`, `residual_spec` and `spec` (what to train),
`data` (rows), `slots` (batches in memory), `ties` and `layout` (where dense parameters lie),
`watch` (seeing a step from within), `network` (forward and backward of dense networks),
`residual_layout`, `memory`, `norms`, `branches` and `residual_network` (the same of residual ones),
`residual_init`, `structure` (either kind), `newton_schulz` and `optimizers`, `averaging`, `history`
(counting and stopping), `fitted` and `residual_fitted` (prediction), `job`, `trace` (one watched
pass), `validation`, `stack`, `loop`, `lbfgs`, `threads`, `runner` (the door).
"""
