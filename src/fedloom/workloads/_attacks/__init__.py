"""Attacks on classifiers inside an L-infinity ball: FGSM, PGD, PGD on margins, and AutoAttack (torch).

All are functions of a model, images x in [0, 1] of shape (b, c, h, w), float32, and labels y of shape (b,), int64. They
return images of the same shape, inside [0, 1] and within epsilon of x in every pixel. The model is used as it is: put
it in evaluation mode (`evaluating`) unless batch statistics are meant to take part. Random starts draw from torch's
generator, so the caller seeds it (`_torch.scope.exact`).
"""
