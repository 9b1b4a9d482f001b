"""The table of tasks: name → the module that defines it, in the order of the help. A new task is one file and one line here.

Light on purpose: commands list the names in their help, which must not wait for torch.
"""

HOMES = {
    "classification": "compress.measures.classification",
    "binary": "compress.measures.binary",
    "multilabel": "compress.measures.multilabel",
    "segmentation": "compress.measures.segmentation",
    "tokens": "compress.measures.tokens",
    "regression": "compress.measures.regression",
    "embedding": "compress.measures.embedding",
    "other": "compress.measures.other",
}
