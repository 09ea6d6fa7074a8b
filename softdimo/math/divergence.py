"""Divergences between the student (auxiliary) p and the teacher q at one masked unit, and their gradients in p's logits.

With u = q / p, a = log p - log q and <p, x> = sum_v p_v x_v, every row is D = sum_v p f(u), and its gradient with respect to the
logits of p is w - p sum_v w, where w = p psi and psi = f(u) - u f'(u) (a constant added to psi changes nothing):

| name      | D                                   | f(u)                        | w = p psi              | gradient                              |
|-----------|-------------------------------------|-----------------------------|------------------------|---------------------------------------|
| fkl       | KL(q, p)                            | u log u                     | -q                     | p - q                                 |
| rkl       | KL(p, q)                            | -log u                      | p a                    | p (a - <p, a>)                        |
| jeffreys  | (1 - beta) KL(q, p) + beta KL(p, q) | ((1 - beta) u - beta) log u | (1 - beta), beta mixed | (1 - beta) (p - q) + beta p (a - <p, a>) |
| js        | (KL(p, m) + KL(q, m)) / 2           | (u log u - (1+u) log((1+u)/2)) / 2 | p l / 2         | p (l - <p, l>) / 2                    |
| hellinger | sum (sqrt q - sqrt p)^2             | (sqrt u - 1)^2              | -sqrt(p q)             | -p (s - <p, s>), s = sqrt u           |
| tv        | sum abs(p - q) / 2                  | abs(u - 1) / 2              | p sign(a) / 2          | p (s - <p, s>) / 2, s = sign(p - q)   |

m = (p + q) / 2 and l = log(p / m) = log 2 + log sigmoid(a). The convention of beta is that of Di[M]O, equation 8: beta = 0 is the forward KL.
For beta < 0 it is no divergence (unbounded below, stationary at p = q): forward KL with a push away from the modes.

Inputs are logits [N V] of masked units only. Everything is computed without autograd, in float32 for lower precisions (float64 stays),
over a few rows at a time, so that beside the result only a fraction of one [N V] tensor is ever alive.
"""
