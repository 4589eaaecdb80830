"""RadixAttention's tree: prefixes, the pages that hold them, and which go first. Knows no model, no tensor."""
