"""Log-scale labels through products of two activations: batched matrices, attention."""

from typing import Any

from Models.symmetry.export import Parameter
from Models.symmetry.labels import Labels, broadcast
from Models.symmetry.propagation import Propagation, Value

_LARGEST = 1 << 22  # relations of one product; with more, its operands are pinned instead


class Contractions(Propagation):
    """Rules for sums of products, in which the labels of both factors add up."""

    def op_bmm(self, x: Value, mat2: Value) -> Value:
        """[…, M, I] times […, I, N]: x[m, i] + y[i, n] = z[m, n] for every i."""
        if isinstance(x, Parameter) or isinstance(mat2, Parameter):
            return None
        left, right = self.elements(x), self.elements(mat2)
        if min(left.var.dim(), right.var.dim()) < 2:
            return None
        left = Labels(*(part.unsqueeze(-1) for part in left)).shrink()
        right = Labels(*(part.unsqueeze(-3) for part in right)).shrink()
        terms = broadcast(left.var, right.var)[0]
        if terms.numel() > _LARGEST:
            return None
        sizes = list(terms.shape)
        sizes[-2] = 1
        product = self.system.fresh(sizes)
        self.system.vanishing_sum(left, right, product.times(-1))
        return self.expanded(Labels(*(part.squeeze(-2) for part in product)))

    def op_baddbmm(self, x: Value, batch1: Value, batch2: Value, **_: Any) -> Value:
        product, added = self.op_bmm(batch1, batch2), self.elements(x)
        if product is not None:
            self.system.tie(product, self.expanded(added))
        return product

    def op_scaled_dot_product_attention(
        self,
        query: Value,
        key: Value,
        value: Value,
        attn_mask: Value = None,
        enable_gqa: bool = False,
        **_: Any,
    ) -> Value:
        """softmax(Q Kᵀ) V: query and key scale inversely, the output as the values do.

        The softmax fixes the scale of the scores, hence one label per entry of a head.
        """
        q, k, v = (self.elements(part) for part in (query, key, value))
        if attn_mask is not None:
            self.pin(self.elements(attn_mask))
        if enable_gqa:
            k, v = (self.for_each_query(part, q) for part in (k, v))
        q, k = self.common(q, [-2]), self.common(k, [-2])
        self.contracted(q, k)
        return self.expanded(self.common(v, [-2]))

    def contracted(self, q: Labels, k: Labels) -> None:
        """State that Σ q_i k_i has no scale."""
        self.system.tie(q, k.times(-1))
