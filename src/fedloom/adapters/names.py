"""Names in the records of models that are adapters on a frozen base."""

LORA_A = "lora_a"
"""Group of the adapters' factors A, by module: (r, in), float32."""
LORA_B = "lora_b"
"""Group of the adapters' factors B, by module: (out, r), float32."""
LORA_E = "lora_e"
"""Group of the gates between the factors, by module, if a method has them: (r,), float32."""
ADAPTERS = "adapters"
"""Key in the info of a record whose model is adapters on a frozen base: `modules` that have one, `scale`, `rank_max`,
and under `base` its pinned inputs, each as [name, digest], in the order they are applied. One
with group `model` has weights, one with both factors is added to them as B·A, one with A alone has factors that are
not trained."""
