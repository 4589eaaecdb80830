"""Solutions of chapter 05's exercises."""

SHARED = "k_rope.expand(-1, self.kv_heads, -1)"
EINSUM = 'torch.einsum("qkgd,kdc->qkgc", grouped, self.up[0])'
VALUES = 'torch.einsum("qkgc,kvc->qkgv", mixed.unflatten(1, (self.kv_heads, -1)), self.up[1])'
ABSORBED = "kept[..., : self.shape.kv_lora_rank]"

WRONG = {
    "05.rope": {
        "neighbours are a pair": """
            def rotate(x, cos, sin):
                other = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
                return x * cos + other * sin
        """,
        "the minus twice": """
            def rotate(x, cos, sin):
                first, second = x.chunk(2, dim=-1)
                return x * cos + torch.cat((-second, first), dim=-1) * sin
        """,
        "the other way round": (("dims=-1), sin)", "dims=-1), -sin)"),),
        "halves are not exchanged": (("x.roll(x.shape[-1] // 2, dims=-1)", "x"),),
        "rolled by one": (("x.shape[-1] // 2", "1"),),
        "heads are rolled": (("dims=-1", "dims=-2"),),
        "the first half only": """
            def rotate(x, cos, sin):
                half = x.shape[-1] // 2
                first = x[..., :half] * cos[..., :half] + x[..., half:] * sin[..., :half]
                return torch.cat((first, x[..., half:]), dim=-1)
        """,
        "in place": """
            def rotate(x, cos, sin):
                half = x.shape[-1] // 2
                x[..., :half] = x[..., :half] * cos[..., :half] + x[..., half:] * sin[..., :half]
                x[..., half:] = x[..., half:] * cos[..., half:] + x[..., :half] * sin[..., half:]
                return x
        """,
        "right, but in place": """
            def rotate(x, cos, sin):
                x.copy_(x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin)
                return x
        """,
        "in float64": (("return torch.addcmul(", "x = x.double()\n    return torch.addcmul("),),
        "sin and cos exchanged": (("x * cos", "x * sin"), ("dims=-1), sin)", "dims=-1), cos)")),
    },
    "05.expand": {
        "latent and rotated key exchanged": (
            ("latent, k_rope = kept.split((shape.kv_lora_rank, shape.qk_rope_head_dim)",
             "k_rope, latent = kept.split((shape.qk_rope_head_dim, shape.kv_lora_rank)"),
        ),
        "value before key": (
            ("k_plain, v = made.split((shape.qk_nope_head_dim, shape.v_head_dim)",
             "v, k_plain = made.split((shape.v_head_dim, shape.qk_nope_head_dim)"),
        ),
        "heads innermost": (("(len(kept), self.kv_heads, -1)", "(len(kept), -1, self.kv_heads).transpose(1, 2)"),),
        "rotated part first": ((f"k_plain, {SHARED}", f"{SHARED}, k_plain"),),
        "no rotated part": ((f"torch.cat((k_plain, {SHARED}), dim=-1), v", "k_plain, v"),),
        "all query heads": ((f"{SHARED}), dim=-1), v", f"{SHARED}), dim=-1).repeat_interleave(2, 1), v"),),
        "all keys, then all values": """
            def expand(self, kept):
                shape = self.shape
                latent, k_rope = kept.split((shape.kv_lora_rank, shape.qk_rope_head_dim), dim=-1)
                made = self.kv_up(latent.squeeze(1))
                k, v = made.split((self.kv_heads * shape.qk_nope_head_dim, self.kv_heads * shape.v_head_dim), dim=-1)
                k = k.unflatten(1, (self.kv_heads, -1))
                return torch.cat((k, k_rope.expand(-1, self.kv_heads, -1)), dim=-1), v.unflatten(1, (self.kv_heads, -1))
        """,
        "the first head's for all": (("cat((k_plain,", "cat((k_plain[:, :1].expand(-1, self.kv_heads, -1),"),),
    },
    "05.absorb": {
        "not transposed": """
            def absorb(self, q):
                shape = self.shape
                q_plain, q_rope = q.split((shape.qk_nope_head_dim, shape.qk_rope_head_dim), dim=-1)
                return torch.cat((q_plain @ self.up[0].transpose(1, 2)[0], q_rope), dim=-1)
        """,
        "W_UV": ((EINSUM, 'torch.einsum("qkgd,kdc->qkgc", grouped[..., : self.shape.v_head_dim], self.up[1])'),),
        "the first key head's for all": (("self.up[0]", "self.up[0][:1].expand_as(self.up[0])"),),
        "groups are strided": (
            ("q_plain.unflatten(1, (self.kv_heads, -1))", "q_plain.unflatten(1, (-1, self.kv_heads)).transpose(1, 2)"),
        ),
        "heads come back strided": ((".flatten(1, 2)", ".transpose(1, 2).flatten(1, 2)"),),
        "the rotated part is lost": (("torch.cat((absorbed, q_rope), dim=-1)", "absorbed"),),
        "the rotated part is first": (("torch.cat((absorbed, q_rope)", "torch.cat((q_rope, absorbed)"),),
        "q_R is cut first": (
            ("q_plain, q_rope = q.split((shape.qk_nope_head_dim, shape.qk_rope_head_dim)",
             "q_rope, q_plain = q.split((shape.qk_rope_head_dim, shape.qk_nope_head_dim)"),
        ),
        "scaled already": (("q_rope), dim=-1)", "q_rope), dim=-1) * self.scale"),),
        "in float64": (("self.up[0])", "self.up[0]).double()"),),
    },
    "05.values": {
        "W_UK": (("self.up[1]", "self.up[0]"),),
        "the first key head's for all": (("self.up[1]", "self.up[1][:1].expand_as(self.up[1])"),),
        "groups are strided": (
            ("mixed.unflatten(1, (self.kv_heads, -1))", "mixed.unflatten(1, (-1, self.kv_heads)).transpose(1, 2)"),
        ),
        "heads come back strided": ((".flatten(1, 2)", ".transpose(1, 2).flatten(1, 2)"),),
        "no flattening": ((".flatten(1, 2)", ""),),
        "heads are summed": (('"qkgc,kvc->qkgv"', '"qkgc,kvc->qgv"'), (".flatten(1, 2)", "")),
        "all heads' matrices": ((VALUES + ".flatten(1, 2)", 'torch.einsum("qhc,kvc->qhv", mixed, self.up[1])'),),
    },
    "05.scale": {
        "still the width of the latent": ((f"{ABSORBED}, self.scale)", f"{ABSORBED}, absorbed.shape[-1] ** -0.5)"),),
        "of the part that is not rotated": (
            (f"{ABSORBED}, self.scale)", f"{ABSORBED}, self.shape.qk_nope_head_dim ** -0.5)"),
        ),
        "the scale of the latent, in both": (("self.scale)", "kept.shape[-1] ** -0.5)"),),
        "no scale": ((f"{ABSORBED}, self.scale)", f"{ABSORBED}, 1.0)"),),
        "scaled twice": (("absorbed = self.absorb(q)", "absorbed = self.absorb(q) * self.scale"),),
        "values of all that is kept": (("self.values(latents)", "latents[..., : self.shape.v_head_dim]"),),
        "always explicit": (("if self.form", "if False and self.form"),),
        "always absorbed": (("if self.form == ", "if True or self.form == "),),
        "the form is not asked": (('self.form == "absorbed" or (self.form is None and ', "((True and "),),
    },
    "05.bytes": {
        "one layer": {"kept": 112},
        "a rotated key a head": {"kept": 896},
        "keys without their rotated part": {"made": 2048},
        "keys are there already": {"explicit": 64000},
        "queries are there already": {"absorbed": 166400},
        "the mixture is free": {"absorbed": 125952},
        "one too early": {"switch": 32},
    },
}  # fmt: skip

RIGHT = {
    "05.rope": {
        "halves": """
            def rotate(x, cos, sin):
                half = x.shape[-1] // 2
                c, s = cos[..., :half], sin[..., half:]
                a, b = x[..., :half], x[..., half:]
                return torch.cat((a * c - b * s, a * s + b * c), dim=-1)
        """,
        "complex numbers": """
            def rotate(x, cos, sin):
                half = x.shape[-1] // 2
                turn = torch.complex(cos[..., :half], sin[..., half:])
                turned = torch.complex(x[..., :half].contiguous(), x[..., half:].contiguous()) * turn
                return torch.cat((turned.real, turned.imag), dim=-1)
        """,
    },
    "05.expand": {
        "by matrices": """
            def expand(self, kept):
                c, k_rope = kept[:, 0, : self.shape.kv_lora_rank], kept[..., self.shape.kv_lora_rank :]
                w_uk, w_uv = self.up
                k = torch.einsum("tc,kdc->tkd", c, w_uk)
                return torch.cat((k, k_rope.repeat(1, self.kv_heads, 1)), dim=-1), torch.einsum("tc,kvc->tkv", c, w_uv)
        """,
        "head by head": """
            def expand(self, kept):
                c, k_rope = kept[:, 0, : self.shape.kv_lora_rank], kept[:, 0, self.shape.kv_lora_rank :]
                keys = [torch.cat((c @ w.T, k_rope), dim=1) for w in self.up[0]]
                return torch.stack(keys, dim=1), torch.stack([c @ w.T for w in self.up[1]], dim=1)
        """,
    },
    "05.absorb": {
        "head by head": """
            def absorb(self, q):
                d, group = self.shape.qk_nope_head_dim, self.heads // self.kv_heads
                heads = [
                    torch.cat((q[:, h, :d] @ self.up[0][h // group], q[:, h, d:]), dim=1) for h in range(self.heads)
                ]
                return torch.stack(heads, dim=1)
        """,
        "matrices repeated": """
            def absorb(self, q):
                d = self.shape.qk_nope_head_dim
                w = self.up[0].repeat_interleave(self.heads // self.kv_heads, dim=0)
                return torch.cat(((q[..., None, :d] @ w).squeeze(2), q[..., d:]), dim=-1)
        """,
    },
    "05.values": {
        "matrices repeated": """
            def values(self, mixed):
                w = self.up[1].repeat_interleave(self.heads // self.kv_heads, dim=0)
                return (w @ mixed[..., None]).squeeze(-1)
        """,
        "head by head": """
            def values(self, mixed):
                group = self.heads // self.kv_heads
                return torch.stack([mixed[:, h] @ self.up[1][h // group].T for h in range(self.heads)], dim=1)
        """,
    },
    "05.scale": {
        "softmax by hand": """
            import torch
            def over(self, q, kept):
                if self.form == "explicit" or (self.form is None and not self.absorbs(len(q), len(kept))):
                    return causal_attention(q, *self.expand(kept), self.scale)
                scores = torch.einsum("qhc,kc->hqk", self.absorb(q) * self.scale, kept[:, 0])
                seen = torch.ones_like(scores[0]).tril(len(kept) - len(q)).bool()
                weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
                return self.values(torch.einsum("hqk,kc->qhc", weights, kept[:, 0, : self.shape.kv_lora_rank]))
        """,
    },
}
